"""When a node may work: sources look, the policy decides, the loop acts."""
