"""Bundle -> a smaller bundle."""
