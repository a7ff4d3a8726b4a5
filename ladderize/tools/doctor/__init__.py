"""`ladderize doctor`: check what works on this machine."""
