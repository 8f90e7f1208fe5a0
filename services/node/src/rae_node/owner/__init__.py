"""The owner's socket and what it answers."""
