"""`ladderize bench`: what hiding communication is worth, measured.

parent    ladderize/launch starts the ranks; rows.py, show.py, draw.py tell what they saw
a rank    rank.py; with programs.py, variants.py, measure.py

results.py, compare.py: what a run found, with machine and versions, and how two of them differ.
"""
