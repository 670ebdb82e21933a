"""Routing Replay held against its promises, on every mixture-of-experts family of transformers or on one model."""
