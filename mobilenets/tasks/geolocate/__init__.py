"""Geolocation: where a photo was taken, as one of many cells of the globe (V1 paper, section 4.4; PlaNet)."""
