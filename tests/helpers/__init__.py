"""Shared by tests: ranks, lockstep, tiny models with their reads, captured graphs, pages."""
