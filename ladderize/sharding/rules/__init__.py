"""How each ATen op carries a sharding: one file for each kind of op, joined in `table.py`."""
