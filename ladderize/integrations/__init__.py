"""ladderize in the engines that people run; each is found by the engine itself."""
