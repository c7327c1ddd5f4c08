"""A network with weights: card, bundle, encodings, preprocessing, PyTorch module and reference."""
