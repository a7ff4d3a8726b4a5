"""Hand-made reports without a model: streams of blocks with given reads and costs."""

from ladderize.config.hardware import Hardware, Link
from ladderize.report import (
    BlockReport,
    CollectiveReport,
    GraphReport,
    Report,
    SegmentReport,
    StreamReport,
)


def block(index, stale=1, stream=0, graph=0, **fields):
    """Block `index`, attention or MLP in turn, that reads `stale` blocks stale."""
    suffix = f"_{stream}" if stream else ""
    kind, part = [("attention", "self_attn"), ("MLP", "mlp")][index % 2]
    given = {
        "graph": graph,
        "stream": stream,
        "segment": 0,
        "index": index,
        "layer": index // 2,
        "module": f"model.layers.{index // 2}.{part}",
        "kind": kind,
        "source": "/home/net.py:7",
        "reads_before": (f"x{index}{suffix}",),
        "reads_after": (f"x{max(index - stale, 0)}{suffix}",),
        "is_converted": stale > 0,
        "num_nodes": 5,
        "flops": 1000,
        "weight_bytes": 0,
        "reduce_bytes": 100,
    }
    return BlockReport(**{**given, **fields})


def stream_of(blocks, index=0):
    return StreamReport(index, tuple(blocks), (SegmentReport(0, 0, len(blocks) - 1, (2, 7, 32)),))


def report_of(*streams, collectives=(), outcome="explained", **fields):
    graph = GraphReport(
        0,
        "forward",
        outcome,
        tuple(stream_of(blocks, i) for i, blocks in enumerate(streams)),
        collectives=tuple(collectives),
        **fields,
    )
    return Report((graph,), versions=(("ladderize", "0.1.0"), ("torch", "2.13.0")))


def reduce_in(name, is_inserted=True, op="all_reduce"):
    return CollectiveReport(op, "0", name, is_inserted, "net.py:7")


def machine(ranks=2, flops=100, memory=1e9, link=100 / 3, latency=1, **rest):
    """Two ranks: 1000 FLOPs of a block take 5 s on each, and 100 bytes 3 s plus 1 s of latency."""
    return Hardware(Link("test", ranks, latency, link), flops, memory, **rest)
