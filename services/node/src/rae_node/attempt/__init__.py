"""One attempt of a task, from its inputs to its outcome."""
