"""Sharding rules of ATen ops: one file per kind of op, joined in `table.py`."""
