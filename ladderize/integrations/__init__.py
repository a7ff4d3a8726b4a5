"""ladderize inside other engines, which find it through their own plugin mechanisms."""
