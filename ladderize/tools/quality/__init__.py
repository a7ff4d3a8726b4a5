"""What `sensitivity` and `evaluate` do around the measurements: models, texts, tables, pictures."""
