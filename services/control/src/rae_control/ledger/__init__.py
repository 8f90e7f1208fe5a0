"""The single source of truth: SQLite behind a small repository interface."""
