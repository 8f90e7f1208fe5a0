"""What developers run: a mesh of real processes, the demo on it, and chaos on it."""
