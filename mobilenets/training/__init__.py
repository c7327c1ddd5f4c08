"""Bundle, data and recipe -> bundle."""
