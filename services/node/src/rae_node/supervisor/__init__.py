"""A task's supervisor, a process of its own. Standard library only."""
