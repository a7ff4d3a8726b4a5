"""Measuring: what a run is made of, what it found, and how two of them differ."""
