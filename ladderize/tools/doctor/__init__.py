"""`ladderize doctor`: what works on this machine."""
