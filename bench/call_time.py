"""Time of a call before the compiled code runs, over depth: guards, and the inputs of the graph.

    python bench/call_time.py [--layers 20 80] [--ranks 2] [--repeats 200] [--json FILE]

A Llama of tiny width is compiled with compiled code that does nothing: by torch.compile alone, with
`backend="ladderize"`, and with `mesh=` for one rank of `--ranks` (a fake process group stands in
for the others). Calls of the three alternate; the table has medians.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from tiny_llama import VOCABULARY, tiny_llama
from torch.distributed.device_mesh import init_device_mesh
from torch.fx import GraphModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from ladderize.backends import LOWERINGS
from ladderize.backends.lowered import Lowered

BATCH, LENGTH = 2, 8
VARIANTS = ("torch.compile", "ladderize", "ladderize, mesh=")


def run_nothing(gm: GraphModule, _examples: Sequence[Any]) -> Callable[..., Any]:
    """A backend whose compiled code returns zeros immediately."""
    (output,) = gm.graph.find_nodes(op="output")
    results = [torch.zeros(BATCH, LENGTH, VOCABULARY) for _ in output.args[0]]
    return lambda *_: results


def measure(num_layers: int, num_ranks: int, repeats: int) -> dict[str, Any]:
    """Seconds per call of each variant."""
    torch._dynamo.reset()
    mesh = init_device_mesh("cpu", (num_ranks,))
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    backends: list[dict[str, Any]] = [
        {"backend": run_nothing},
        {"backend": "ladderize", "options": {"lowering": "eager"}},
        {"backend": "ladderize", "options": {"lowering": "eager", "mesh": mesh}},
    ]
    model = tiny_llama(num_layers)
    compiled = [tiny_llama(num_layers) for _ in backends]
    for each, how in zip(compiled, backends, strict=True):
        each.compile(fullgraph=True, dynamic=False, **how)
    seconds: list[list[float]] = [[] for _ in compiled]
    with torch.no_grad():
        for each in compiled:
            each(input_ids=ids, use_cache=False)
        for _ in range(repeats):
            for times, each in zip(seconds, compiled, strict=True):
                began = time.perf_counter()
                each(input_ids=ids, use_cache=False)
                times.append(time.perf_counter() - began)
    row: dict[str, Any] = {"layers": num_layers, "weights": len(list(model.parameters()))}
    return row | dict(zip(VARIANTS, map(statistics.median, seconds), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 80])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("fake", rank=0, world_size=args.ranks, store=FakeStore())
    LOWERINGS["eager"] = lambda gm, examples, _config: Lowered(run_nothing(gm, examples))
    rows = [measure(layers, args.ranks, args.repeats) for layers in args.layers]
    table = Table("layers", "weights", *(f"{name}, µs" for name in VARIANTS), "ratio")
    for row in rows:
        times = [row[name] for name in VARIANTS]
        cells = [f"{1e6 * each:.0f}" for each in times]
        table.add_row(str(row["layers"]), str(row["weights"]), *cells, f"{times[2] / times[0]:.2f}")
    Console(width=100).print(table)
    if args.json:
        where = {"torch": torch.__version__, "machine": platform.machine(), "ranks": args.ranks}
        args.json.write_text(json.dumps({"where": where, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
