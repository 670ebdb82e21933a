"""Inference engines: prompts in; tokens, log-probabilities, routes and policy version out."""
