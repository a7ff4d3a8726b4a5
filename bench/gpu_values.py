"""Check values on this device: compiled ladders of a small Llama against eager mode.

    python bench/gpu_values.py [--device cuda] [--json FILE]

    two ranks, gloo    both on one device, with mesh=; every emitted wrapper is checked for races
    one rank, NCCL     the same with mode="reduce-overhead": replays of a CUDA graph

Rows hold errors divided by the largest logit. `error` is the compiled ladder's, `eager_error` that
of the same ladder in eager mode, both relative to a handwritten ladder in float32
(bench/handwritten.py); `standard_error` is the standard model's. `differing` counts calls whose
result is not bitwise equal to the first one's on the same input.

There are two rows because NCCL refuses two ranks on one device, and no CUDA graph captures gloo's
collectives. With `--device cpu` both use gloo, and nothing is captured.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from handwritten import ladder_logits
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from ladderize.backends.emitted import find_disorder, find_races, read_events
from ladderize.report.files import refuse_file
from ladderize.testing.emitted_code import record_emitted_code
from ladderize.testing.verify.locate import relative_error
from ladderize.tools.bench.record import ResultRow, Results

CALLS = 8
BATCH, LENGTH = 2, 64
CONFIG = LlamaConfig(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    vocab_size=512,
    initializer_range=0.05,
    use_cache=False,
)
COLUMNS = ("ranks", "mode", "dtype", "error", "eager", "standard", "differing", "races", "disorder")


def measure(mesh: DeviceMesh, dtype: torch.dtype, mode: str) -> ResultRow:
    torch._dynamo.reset()
    torch.manual_seed(0)
    device = torch.device(mesh.device_type)
    model = LlamaForCausalLM(CONFIG).eval().to(device, dtype)
    inputs = [torch.randint(0, CONFIG.vocab_size, (BATCH, LENGTH), device=device) for _ in range(2)]
    eager, standard = ladder_logits(model, inputs[0]), model(input_ids=inputs[0]).logits
    options: dict[str, Any] = {"mesh": mesh} | ({"mode": mode} if mode != "default" else {})
    compiled = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
    with record_emitted_code() as sources:
        found = [_call(compiled, inputs[i % 2]) for i in range(2 * CALLS)][::2]
    exact = ladder_logits(model.float(), inputs[0])
    programs = [read_events(source) for source in sources]
    key = {"ranks": mesh.size(), "mode": mode, "dtype": str(dtype).removeprefix("torch.")}
    values = {
        "error": relative_error(found[0], exact),
        "eager_error": relative_error(eager, exact),
        "standard_error": relative_error(standard, exact),
        "differing": sum(not torch.equal(each, found[0]) for each in found),
        "wrappers": len(sources),
        "races": sum(len(find_races(program)) for program in programs),
        "disorder": sum(len(find_disorder(program)) for program in programs),
    }
    return ResultRow(key, values)


def _call(compiled: Any, ids: Tensor) -> Tensor:
    torch.compiler.cudagraph_mark_step_begin()
    logits: Tensor = compiled(input_ids=ids).logits
    return logits.clone()  # a CUDA graph reuses its output memory


def on_rank(rank: int, ranks: int, backend: str, mode: str, device: str, folder: str) -> None:
    """Measure on one rank, and write the result to the rank's file."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    mesh = init_device_mesh(device, (ranks,))
    with torch.no_grad():
        rows = [measure(mesh, dtype, mode) for dtype in (torch.float32, torch.bfloat16)]
    said = [{"key": dict(row.key), "values": dict(row.values)} for row in rows]
    Path(folder, f"{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def on_ranks(ranks: int, backend: str, mode: str, device: str) -> Iterator[ResultRow]:
    """The worst result of all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, (ranks, backend, mode, device, folder), nprocs=ranks)
        said = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]
    for rows in zip(*said, strict=True):
        names = rows[0]["values"]
        values = {name: max(row["values"][name] for row in rows) for name in names}
        yield ResultRow(rows[0]["key"], values)


def table_of(rows: list[ResultRow]) -> Table:
    table = Table(*COLUMNS)
    for row in rows:
        errors = [f"{row.values[n]:.1e}" for n in ("error", "eager_error", "standard_error")]
        counts = [str(row.values[name]) for name in ("differing", "races", "disorder")]
        table.add_row(*map(str, row.key.values()), *errors, *counts)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    if options.json:
        refuse_file(options.json, force=True)
    one_rank = ("nccl", "reduce-overhead") if options.device == "cuda" else ("gloo", "default")
    rows = [
        *on_ranks(2, "gloo", "default", options.device),
        *on_ranks(1, *one_rank, options.device),
    ]
    Console(width=120).print(table_of(rows))
    if options.json:
        command = " ".join(["python", "bench/gpu_values.py", *sys.argv[1:]])
        Results(command, tuple(rows)).write(options.json, force=True)


if __name__ == "__main__":
    main()
