"""What kinds of task a node runs: each runner turns a task into a plan, or says why not."""
