"""The agent process: its threads, start and single instance."""
