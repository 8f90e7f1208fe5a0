"""Log, metrics and the journal."""
