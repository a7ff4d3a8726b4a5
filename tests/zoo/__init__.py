"""Families of residual models, tiny and random, which are searched, rewritten and compared.

The rows are in one file per kind, and together in `table`. `programs` traces each family once, and
`checks` has the checks. To add a family, add a row; `print(model)` and the layer's forward show
what a block reads.
"""
