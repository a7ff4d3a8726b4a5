"""Models, texts, tables and pictures for `sensitivity`, `heal` and `evaluate`."""
