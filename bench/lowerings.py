"""One ladder under several lowerings, on real ranks: values, time of a step, what is hidden.

    torchrun --nproc-per-node 2 bench/lowerings.py --model bench/models/llama-8b.json \\
        --lowerings inductor,tensorrt --dtype bfloat16 --traces traces

The first one is what the others are held against. Steps take turns; a trace of one step of each
tells how much of its communication ran beside compute (`--traces` keeps them, for `ladderize plot
--trace`). The proof of the TensorRT lowering on GPUs, where it has not been run yet. Without GPUs
`--device cpu --lowerings inductor,aot_eager` tries all but that.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import profile
from transformers import AutoConfig, AutoModelForCausalLM

import ladderize
from ladderize.benchmark.paired import paired_ratio
from ladderize.timeline import read_step

COLUMNS = ("lowering", "difference", "step ms", "of the first", "communication ms", "hidden")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a transformers configuration")
    parser.add_argument("--layers", type=int, help="fewer than the configuration's")
    parser.add_argument("--lowerings", default="inductor,tensorrt")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cache", help="a folder for the engines")
    parser.add_argument("--traces", type=Path, help="a folder for a trace of each lowering")
    return parser.parse_args()


def make_model(options: argparse.Namespace) -> nn.Module:
    """With random weights, the same on all ranks."""
    config = AutoConfig.from_pretrained(options.model)
    config.num_hidden_layers = options.layers or config.num_hidden_layers
    config.use_cache = False
    torch.manual_seed(0)
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config)
    return model.to(getattr(torch, options.dtype)).eval()


def compiled(model: nn.Module, mesh: Any, lowering: str, cache: str | None) -> Callable[..., Any]:
    options: dict[str, Any] = {"mesh": mesh, "lowering": lowering}
    if lowering == "tensorrt" and cache:
        options["lowering_options"] = {"cache": cache}
    return torch.compile(model, backend="ladderize", fullgraph=True, options=options)


def timed(step: Callable[..., Any], ids: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds of a step, which begins on all ranks together, and its logits."""
    dist.barrier()
    if ids.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    logits = step(input_ids=ids).logits
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, logits.float()


def trace(step: Callable[..., Any], ids: torch.Tensor, path: Path) -> tuple[float, float]:
    """Seconds of communication in one step, and the part that compute covers."""
    with profile() as prof:
        timed(step, ids)
    prof.export_chrome_trace(str(path))
    found = read_step(path, path.stem)
    return found.communication.seconds, found.hidden_fraction or 0.0


def main() -> None:
    options = arguments()
    rank = int(os.environ["LOCAL_RANK"])
    if options.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    mesh = init_device_mesh(options.device, (dist.get_world_size(),))
    names = options.lowerings.split(",")
    ids = torch.arange(options.batch * options.length, device=options.device) % 97
    ids = ids.reshape(options.batch, options.length)
    folder = options.traces or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(options)
    with torch.no_grad():
        steps: dict[str, Callable[..., Any]] = {}
        logits: dict[str, torch.Tensor] = {}
        for name in names:
            torch._dynamo.reset()
            steps[name] = compiled(model, mesh, name, options.cache)
            logits[name] = timed(steps[name], ids)[1]
            if rank == 0 and name == "tensorrt":
                Console(file=sys.stderr).print(ladderize.last_report())
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.repeats):
            for name in names:
                seconds[name].append(timed(steps[name], ids)[0])
        traced = {n: trace(steps[n], ids, folder / f"{n}-{rank}.json") for n in names}
    if rank == 0:
        show(names, logits, seconds, traced)
    dist.destroy_process_group()


def show(
    names: list[str],
    logits: dict[str, torch.Tensor],
    seconds: dict[str, list[float]],
    traced: dict[str, tuple[float, float]],
) -> None:
    """One line a lowering; differences over the largest logit of the first."""
    first = names[0]
    print("  ".join(f"{column:>16}" for column in COLUMNS))
    for name in names:
        off = (logits[name] - logits[first]).abs().max() / logits[first].abs().max()
        communication, hidden = traced[name]
        cells = (
            name,
            f"{float(off):.1e}",
            f"{statistics.median(seconds[name]) * 1e3:.2f}",
            f"{paired_ratio(seconds[name], seconds[first]).median:.3f}",
            f"{communication * 1e3:.2f}",
            f"{hidden:.1%}",
        )
        print("  ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
