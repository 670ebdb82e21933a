"""A run directory: its lock, its logs, its checkpoints, and copies of its numbers elsewhere."""
