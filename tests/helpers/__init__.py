"""What tests share: ranks, lockstep, tiny models with their reads, captured graphs, pages."""
