"""Ranks on this machine, for `ladderize demo` and `ladderize bench`.

ranks.py      start them, collect what they return, say why one failed
progress.py   what they are doing right now, on the terminal of the parent
"""
