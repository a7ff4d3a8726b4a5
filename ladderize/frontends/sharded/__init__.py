"""Ahead of time: `parallelize` a model over ranks, and sharded programs as files."""
