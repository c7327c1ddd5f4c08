"""Weights that others trained: their files read, their networks recognised, their names translated."""
