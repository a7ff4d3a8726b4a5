"""Predict a step on other hardware: timelines and plans."""
