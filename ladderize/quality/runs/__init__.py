"""Whole runs, from a folder with a model to a folder with a ladder."""
