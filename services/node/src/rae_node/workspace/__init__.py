"""The tasks' folders, and what an earlier agent left in them."""
