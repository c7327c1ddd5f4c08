"""What a network is, as data: rows, operations, the zoo, exact cost, published numbers. Loads no numpy and no torch."""
