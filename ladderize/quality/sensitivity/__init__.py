"""Choose blocks to convert: measure the damage of sets, and search for the least."""
