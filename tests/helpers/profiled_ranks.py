"""Traces that ranks record for test_timeline_trace.py: a few steps of a small model with gloo."""

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_reduce
from torch.profiler import ProfilerActivity, profile

BLOCKS = 4


def _step(weight):
    x = torch.randn(64, 64)
    for _ in range(BLOCKS):
        x = x + all_reduce(torch.relu(x @ weight), "sum", dist.group.WORLD)
    return x + 0


def record(path):
    """Record a whole trace and one of three steps; rank 0 writes them."""
    weight = torch.randn(64, 64)
    _step(weight)
    with profile(activities=[ProfilerActivity.CPU]) as whole:
        _step(weight)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as stepped:
        for _ in range(3):
            with torch.profiler.record_function("ProfilerStep#0"):
                _step(weight)
    if dist.get_rank() == 0:
        whole.export_chrome_trace(f"{path}/whole.json")
        stepped.export_chrome_trace(f"{path}/steps.json.gz")
