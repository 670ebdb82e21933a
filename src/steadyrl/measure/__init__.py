"""What a step was like, in numbers."""
