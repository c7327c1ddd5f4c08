"""Boxes as people have them: a module for each format, one way into the data set that they become."""
