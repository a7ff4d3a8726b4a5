"""Exposed communication of a sequence-parallel ladder under each schedule, emulated.

    python bench/sequence_parallel.py [--layers 16] [--ranks 8]

Compiles a decoder with DTensor's SequenceParallel (8 ranks of the "fake" process group, in one
process) and simulates the scheduled graphs: compute takes its FLOPs, each collective a fixed time
on a link that carries one at a time, and a wait lasts until its collective is complete. The result
is exact and repeatable; no clock is read. `share` is the time of one collective divided by a
block's compute time; a block has two collectives, a reduce-scatter and an all-gather.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.distributed.device_mesh import init_device_mesh
from torch.fx import Graph
from torch.testing._internal.distributed.fake_pg import FakeStore

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.parallel_nets import make_ids, make_net, shard

from ladderize.graph.flops import work_of
from ladderize.graph.in_flight import is_launch, is_wait
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.transfer_chains import Chains

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


@contextmanager
def kept_graphs() -> Iterator[list[Graph]]:
    """Collect the graphs, forward and backward, after `DeferWaits`."""
    graphs, original = [], DeferWaits.__call__

    def call(self, gm):
        result = original(self, gm)
        graphs.append(gm.graph)
        return result

    DeferWaits.__call__ = call
    try:
        yield graphs
    finally:
        DeferWaits.__call__ = original


@contextmanager
def like_with_like() -> Iterator[None]:
    """Wait for each reduce-scatter after the next one; leave all-gathers in place."""
    original = Chains.places
    Chains.places = lambda _: iter(())
    try:
        yield
    finally:
        Chains.places = original


def graphs_of(layers: int, ranks: int, staleness: int) -> list[Graph]:
    torch._dynamo.reset()
    mesh = init_device_mesh("cpu", (ranks,))
    net = shard("sequence", make_net(layers, width=256, heads=8, inner=1024), mesh)
    options = {"lowering": "aot_eager", "staleness": staleness}
    run = torch.compile(net, backend="ladderize", fullgraph=True, options=options)
    with kept_graphs() as graphs:
        run(make_ids(batch=2, length=64)).square().mean().backward()
    return graphs


def exposed(graph: Graph, num_blocks: int, share: float) -> float:
    """The exposed part of all communication."""
    work = {node: work_of(node) for node in graph.nodes}
    each = share * sum(work.values()) / num_blocks
    now = link = waited = total = 0.0
    done: Mapping = {}
    for node in graph.nodes:
        if is_launch(node):
            link = max(now, link) + each
            done[node] = link
            total += each
        elif is_wait(node) and node.args[0] in done:
            waited += max(0.0, done[node.args[0]] - now)
            now = max(now, done[node.args[0]])
        now += work[node]
    return waited / total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--ranks", type=int, default=8)
    given = parser.parse_args()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=given.ranks)
    schedules = {"standard model": graphs_of(given.layers, given.ranks, 0)}
    with like_with_like():
        schedules["like with like"] = graphs_of(given.layers, given.ranks, 1)
    schedules["wait in mid-block"] = graphs_of(given.layers, given.ranks, 1)
    schedules["the same, staleness 2"] = graphs_of(given.layers, given.ranks, 2)
    table = Table(title=f"exposed communication, {given.layers} layers, torch {torch.__version__}")
    table.add_column("schedule")
    table.add_column("pass")
    for share in SHARES:
        table.add_column(f"share {share}", justify="right")
    for name, graphs in schedules.items():
        for part, graph in zip(("forward", "backward"), graphs, strict=True):
            # The backward computes twice as much for the same number of collectives.
            blocks = 2 * given.layers * (1 if part == "forward" else 2)
            row = [f"{exposed(graph, blocks, share):.0%}" for share in SHARES]
            table.add_row(name, part, *row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
