"""Ranks on this machine, for `ladderize demo` and `ladderize bench`.

ranks.py      start them, collect their results, explain a failure
progress.py   show their current stage on the parent's terminal
"""
