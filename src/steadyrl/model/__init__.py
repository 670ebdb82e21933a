"""The trained model: loading, log-probabilities, packing, routing, decoding, checkpoints. Imports transformers."""
