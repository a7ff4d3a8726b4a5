"""`ladderize bench`: what hiding communication is worth, measured.

parent    run.py starts the ranks; rows.py, result_tables.py, chart.py tell what they saw
a rank    rank.py; with case_programs.py, variants.py, timing.py, least_exposed.py
record.py what a run found, with machine and versions
"""
