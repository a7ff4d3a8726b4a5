"""What users call: the `torch.compile` backend, `compile`, `rewrite`, `parallelize`, `explain`."""
