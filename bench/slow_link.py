"""Standard net, ladder and the no-communication bound over the link between two machines, timed.

    bench/netns.sh [--hidden 768] [--layers 4] [--length 128] [--repeat 20] [--out slow_link.json]

Run by `bench/netns.sh`, which makes the link; or by any launcher that sets RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT on each machine. The three programs take turns, so that what else the
machine does falls on all alike; a step lasts as long as on its slowest rank. The bound is this
rank's shard without its all-reduces: its values are wrong, its compute is the same.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from ladderize.demo import handwritten

WARM_UP = 3


def build(hidden: int, layers: int) -> Any:
    """A Llama of the usual proportions with a small vocabulary: its blocks are what is timed."""
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
    """Each compiled; called without arguments they return the logits."""
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
        "no communication": lambda: alone(local, ids),
    }


def take_turns(steps: dict[str, Callable[[], Any]], repeat: int) -> dict[str, list[float]]:
    """The seconds of each step, those of its slowest rank, in the order of the runs."""
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


def middle(values: list[float]) -> tuple[float, float]:
    """The median, and the half of all that lies around it, as a part of it."""
    first, median, third = statistics.quantiles(values, n=4)
    return median, (third - first) / median


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", default="not said", help="what connects the ranks, in words")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--lowering", choices=["inductor", "aot_eager"], default="inductor")
    parser.add_argument("--out", type=Path, help="write the results there, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")

    model = build(given.hidden, given.layers)
    ids = torch.arange(given.length)[None] % 256
    compiled = programs(model, ids, given.lowering)
    with torch.no_grad():
        expected = handwritten.ladder_logits(model, ids)
        error = (compiled["ladder"]() - expected).abs().max().item()
        carried = torch.zeros(1, given.length, given.hidden)
        steps = {**compiled, "one all-reduce": lambda: dist.all_reduce(carried)}
        seconds = take_turns(steps, given.repeat)
    if dist.get_rank() == 0:
        report(given, seconds, error)
    dist.destroy_process_group()


def report(given: argparse.Namespace, seconds: dict[str, list[float]], error: float) -> None:
    medians = {name: middle(values)[0] for name, values in seconds.items()}
    bound, standard = medians["no communication"], medians["standard"]
    share = medians["one all-reduce"] / (bound / (2 * given.layers))
    table = Table(title=f"{given.link}; one all-reduce takes {share:.0%} of a block's compute")
    for column in ("step", "median", "spread", "over the bound", "faster than standard"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, values in seconds.items():
        median, spread = middle(values)
        ratios = [f"{median / bound:.3f}", f"{standard / median:.2f}"] if name in STEPS else []
        table.add_row(name, f"{median * 1e3:.1f} ms", f"{spread:.0%}", *ratios)
    Console(width=110).print(table)
    print(f"largest error of the ladder against an eager one: {error:.1e}")
    if given.out:
        found = {
            "scenario": {key: str(value) for key, value in vars(given).items()},
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "all_reduce_of_a_block": share,
            "error": error,
            "seconds": seconds,
        }
        given.out.write_text(json.dumps(found, indent=1))


STEPS = ("standard", "ladder", "no communication")

if __name__ == "__main__":
    main()
