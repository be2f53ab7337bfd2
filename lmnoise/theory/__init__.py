"""Closed forms in float64 that the measurements are held against."""
