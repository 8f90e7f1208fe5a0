"""Configuration files, their folder and reload."""
