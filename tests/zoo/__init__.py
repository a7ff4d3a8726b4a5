"""Families of residual models, tiny and random: what is found in each, rewritten, and compared.

The rows are in a file by kind, and all together in `table`; `programs` traces each of them once,
and `checks` says what is asked of it. To add a family, add a row: what a block reads is found by
`print(model)` and a look at its layer's forward.
"""
