"""How a task is kept apart, seen from the agent."""
