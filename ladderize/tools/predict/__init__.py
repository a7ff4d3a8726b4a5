"""A step on hardware that need not be here: devices and links, timelines, plans."""
