"""Measure a rank's memory while `ladderize.parallelize` loads its part of a checkpoint.

    python bench/load_memory.py --out results.json

Writes a Llama checkpoint of at least 2 GB in bfloat16 (random weights, several safetensors files,
an index) to a temporary directory. Each of 8 ranks then loads its slices in its own process, one
after the other; the process group is torch's "fake" one, which needs no peers. The kernel's
high-water mark of resident memory (VmHWM, reset before the load) also counts mapped pages.
"""

import argparse
import gc
import json
import multiprocessing
import platform
import re
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

import ladderize

MIB = 2**20
CONFIG = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32768,
    "use_cache": False,
    "dtype": torch.bfloat16,
}


def factory() -> torch.nn.Module:
    return LlamaForCausalLM(LlamaConfig(**CONFIG)).to(torch.bfloat16).eval()


def write_checkpoint(folder: str) -> None:
    torch.manual_seed(0)
    factory().save_pretrained(folder, max_shard_size="500MB")


def memory(key: str) -> float:
    """A value of /proc/self/status, in MiB."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def load_as(rank: int, num_ranks: int, folder: str, pipe: object) -> None:
    """Load as `rank` of `num_ranks`, and send back the memory and time used."""
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)
    mesh = init_device_mesh("cpu", (num_ranks,))
    inputs = {"input_ids": torch.zeros(1, 16, dtype=torch.int64)}
    ladderize.plan_parallel(factory, num_ranks, (), inputs)  # imports and caches do not count
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    shard = ladderize.parallelize(factory, mesh, (), inputs, checkpoint=folder)
    seconds = time.perf_counter() - started
    peak = memory("VmHWM") - before
    local = shard.local_program
    largest = max(entry.full_bytes() for entry in local.entries)
    pipe.send(  # type: ignore[attr-defined]
        {
            "rank": rank,
            "local MiB": local.bytes_per_rank / MIB,
            "peak MiB": peak,
            "allowed MiB": (1.1 * local.bytes_per_rank + largest) / MIB,
            "largest tensor MiB": largest / MIB,
            "model MiB": local.bytes_in_all / MIB,
            "seconds": seconds,
        }
    )


def in_own_process(target: object, *args: object) -> object:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*args, theirs))  # type: ignore[arg-type]
    process.start()
    result = ours.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder)
        gc.collect()
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        print(f"checkpoint: {size / 1e9:.2f} GB, torch {torch.__version__}, {platform.machine()}\n")
        print("| rank | local weights | peak of the load | limit | seconds |")
        print("|---|---|---|---|---|")
        rows = []
        for rank in range(options.ranks):
            row = in_own_process(load_as, rank, options.ranks, folder)
            rows.append(row)
            print(
                f"| {row['rank']} | {row['local MiB']:.0f} MiB | {row['peak MiB']:.0f} MiB | "
                f"{row['allowed MiB']:.0f} MiB | {row['seconds']:.1f} |",
                flush=True,
            )
    print(f"\nlargest tensor {row['largest tensor MiB']:.0f} MiB, model {row['model MiB']:.0f} MiB")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
