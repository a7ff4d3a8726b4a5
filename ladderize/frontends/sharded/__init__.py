"""Ahead-of-time sharding: `parallelize` a model over ranks, and write and load sharded programs."""
