"""Images with what is to be said of them. No torch."""
