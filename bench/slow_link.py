"""Time the standard model, the ladder and the no-communication bound on a link of two machines.

    bench/netns.sh [--hidden 768] [--layers 4] [--length 128] [--repeat 20] [--out slow_link.json]

Started by `bench/netns.sh`, which creates the link, or by any launcher that sets RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT on each machine. The three programs alternate, so other work on the
machine affects all of them equally; the time of a step is that of its slowest rank. The bound is
this rank's shard without its all-reduces: its values are wrong, its compute is the same.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import handwritten
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from ladderize.report.files import refuse_file
from ladderize.tools.bench.paired import step_values
from ladderize.tools.bench.record import ResultRow, Results
from ladderize.tools.bench.result_tables import show

WARM_UP = 3
ALONE = "one all-reduce"


def build(hidden: int, layers: int) -> Any:
    """A Llama with the usual proportions and a small vocabulary, dominated by its blocks."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        vocab_size=256,
        initializer_range=hidden**-0.5,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def programs(model: Any, ids: Tensor, lowering: str) -> dict[str, Callable[[], Tensor]]:
    """The compiled programs; called without arguments, they return the logits."""
    ranks = dist.get_world_size()
    common = {"mesh": init_device_mesh("cpu", (ranks,)), "shard_vocabulary": False}

    def ladder(staleness: int) -> Callable[[], Tensor]:
        options = {**common, "lowering": lowering, "staleness": staleness}
        run = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
        return lambda: run(input_ids=ids, use_cache=False).logits

    local = handwritten.shard(model, dist.get_rank(), ranks)
    alone = torch.compile(handwritten.ladder_logits, fullgraph=True, backend=lowering)
    return {
        "standard": ladder(0),
        "ladder": ladder(1),
        "bound": lambda: alone(local, ids),
    }


def measure(given: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """The results of `take_turns` for all programs, and the largest error of the ladder."""
    model = build(given.hidden, given.layers)
    ids = torch.arange(given.length)[None] % 256
    compiled = programs(model, ids, given.lowering)
    with torch.no_grad():
        expected = handwritten.ladder_logits(model, ids)
        error = (compiled["ladder"]() - expected).abs().max() / expected.abs().max()
        carried = torch.zeros(1, given.length, given.hidden)
        steps = {**compiled, ALONE: lambda: dist.all_reduce(carried)}
        return take_turns(steps, given.repeat), error.item()


def take_turns(steps: dict[str, Callable[[], Any]], repeat: int) -> dict[str, list[float]]:
    """The seconds of each step on its slowest rank, in the order of the runs."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(WARM_UP + repeat):
        for name, step in steps.items():
            dist.barrier()
            start = time.perf_counter()
            step()
            taken = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            if run >= WARM_UP:
                seconds[name].append(taken.item())
    return seconds


def rows_of(
    given: argparse.Namespace, seconds: dict[str, list[float]], error: float
) -> Iterator[ResultRow]:
    """One row for each program; the bound's also has the time of an all-reduce alone."""
    alone = statistics.median(seconds[ALONE])
    steps = {name: found for name, found in seconds.items() if name != ALONE}
    for name in steps:
        values: dict[str, float | None] = step_values(name, steps)
        if name == "ladder":
            values["error"] = error
        if name == "bound":
            of_block = alone / (statistics.median(steps[name]) / (2 * given.layers))
            values |= {"all_reduce_s": alone, "block_ratio": of_block}
        sizes = {"batch": 1, "length": given.length, "hidden": given.hidden, "layers": given.layers}
        yield ResultRow({"variant": name, "phase": "prefill", **sizes, "link": given.link}, values)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--link", default="not said", help="description of the link")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--lowering", choices=["inductor", "aot_eager"], default="inductor")
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    return parser.parse_args(words)


def main() -> None:
    given = arguments()
    if given.out:
        refuse_file(given.out, force=True)  # before minutes of measuring, not after them
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    seconds, error = measure(given)
    if dist.get_rank() == 0:
        command = shlex.join(["python", "bench/slow_link.py", *sys.argv[1:]])
        report(Results(command, tuple(rows_of(given, seconds, error))), given.out)
    dist.destroy_process_group()


def report(results: Results, out: Path | None) -> None:
    show(Console(width=110), results.rows)
    bound = next(row for row in results.rows if row.key["variant"] == "bound")
    share = bound.values["block_ratio"]
    print(f"an all-reduce alone takes {share:.0%} of a block's compute")
    if out:
        results.write(out, force=True)


if __name__ == "__main__":
    main()
