"""Where prompts and rewards come from. Nothing here loads torch: scoring runs in light worker processes."""
