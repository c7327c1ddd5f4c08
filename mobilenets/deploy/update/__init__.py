"""Updates of installed networks: made, signed, applied, rolled back, served by any web server. No torch."""
