"""What this machine has: capabilities, GPUs, processes, clocks."""
