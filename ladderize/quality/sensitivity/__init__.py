"""Which blocks to convert: measure what sets of them cost, and search for the cheapest."""
