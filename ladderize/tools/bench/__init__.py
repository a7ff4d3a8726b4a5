"""`ladderize bench`: measure what hiding communication gains.

parent    run.py starts the ranks; rows.py, result_tables.py, chart.py show what they measured
a rank    rank.py, with case_programs.py, variants.py, timing.py, least_exposed.py
record.py the results of a run, with machine and versions
"""
