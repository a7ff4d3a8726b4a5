"""Entry points: the `torch.compile` backend, `compile`, `rewrite`, `parallelize`, `explain`."""
