"""π: the θ_old pass and the gradient updates of a global step."""
