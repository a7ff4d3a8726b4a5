"""Families of residual models, tiny and random: what is found in each, rewritten, and compared.

The tables are `decoders`, `encoders`, `vision` and `handwritten`; `test_zoo` runs every row.
"""
