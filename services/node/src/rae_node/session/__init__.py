"""Calls to control: registration, polls, results."""
