"""From problems to trajectories with advantages."""
