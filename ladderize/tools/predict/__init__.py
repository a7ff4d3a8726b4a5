"""A step on hardware that need not be here: timelines and plans."""
