"""Backup, restore, doctor and the jobs of the maintenance worker."""
