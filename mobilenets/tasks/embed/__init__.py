"""Embeddings: a vector for each image, near that of another of the same person, product or place."""
