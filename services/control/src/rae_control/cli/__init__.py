"""The verbs of `rae-control` and `raectl`."""
