"""Compare lowerings of one ladder on real ranks: values, step times, hidden communication.

    torchrun --nproc-per-node 2 bench/lowerings.py --model bench/models/llama-8b.json \\
        --lowerings inductor,tensorrt --dtype bfloat16 --traces traces

The others are compared with the first one. Steps alternate; a trace of one step of each shows how
much of its communication overlapped with compute (`--traces` keeps the traces, for `ladderize plot
--trace`). This tests the TensorRT lowering on GPUs, where it has not been run yet. Without GPUs,
`--device cpu --lowerings inductor,aot_eager` tests everything else.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig, AutoModelForCausalLM

import ladderize
from ladderize.tools.bench.paired import paired_ratio
from ladderize.tools.bench.timing import ModelCall, Samples, measure, timed, traced
from ladderize.tools.bench.variants import BenchVariant

COLUMNS = ("lowering", "difference", "step ms", "of the first", "communication ms", "hidden")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="transformers configuration")
    parser.add_argument("--layers", type=int, help="number of layers to keep")
    parser.add_argument("--lowerings", default="inductor,tensorrt")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cache", help="folder for the engines")
    parser.add_argument("--traces", type=Path, help="folder for a trace of each lowering")
    return parser.parse_args()


def make_model(options: argparse.Namespace) -> nn.Module:
    """The model with random weights, the same on all ranks."""
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


def main() -> None:
    options = arguments()
    rank = int(os.environ["LOCAL_RANK"])
    if options.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    mesh = init_device_mesh(options.device, (dist.get_world_size(),))
    ids = torch.arange(options.batch * options.length, device=options.device) % 97
    call = ModelCall((), {"input_ids": ids.reshape(options.batch, -1)}, device=options.device)
    model = make_model(options)
    names = options.lowerings.split(",")
    variants = [
        BenchVariant(name, model, compiled(model, mesh, name, options.cache), expected=None)
        for name in names
    ]
    with torch.no_grad():
        outputs = {}
        for variant in variants:
            outputs[variant.name] = timed(variant, call)[1]
            if rank == 0 and variant.name == "tensorrt":
                Console(file=sys.stderr).print(ladderize.last_report())
        expected = dict.fromkeys(names, outputs[names[0]])
        samples = measure(variants, expected, call, options.repeats, warmup=1)
        if options.traces:
            options.traces.mkdir(parents=True, exist_ok=True)
        for variant in variants:
            path = options.traces and options.traces / f"{variant.name}-{rank}.json"
            seen = traced(variant, call, path)
            samples[variant.name].exposed = seen.exposed
            samples[variant.name].communicating = seen.communicating
    if rank == 0:
        show(samples)
    dist.destroy_process_group()


def show(samples: dict[str, Samples]) -> None:
    """Print one line per lowering; the others are compared with the first."""
    first = next(iter(samples.values()))
    print("  ".join(f"{column:>16}" for column in COLUMNS))
    for name, found in samples.items():
        (exposed,), (whole,) = found.exposed, found.communicating
        cells = (
            name,
            f"{found.error:.1e}",
            f"{statistics.median(found.seconds) * 1e3:.2f}",
            f"{paired_ratio(found.seconds, first.seconds).median:.3f}",
            f"{whole * 1e3:.2f}",
            f"{1 - exposed / whole:.1%}" if whole else "",
        )
        print("  ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
