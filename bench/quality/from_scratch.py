"""Train a small transformer from scratch: the standard model and its ladders.

    python bench/quality/from_scratch.py FOLDER --out bench/results/from_scratch.json

All models of a seed have the same initial weights and the same batches of bytes of FOLDER/text.
The loss is measured on held-out text, in nats per byte. About 40 minutes on two cores.
"""

import argparse
import multiprocessing
import shlex
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import torch
import transformers
from torch import Tensor

import ladderize
from ladderize.tools.bench.record import ResultRow, Results

VARIANTS = {"standard": None, "ladder": "all", "upper half": "last:50%"}
LENGTH, BATCH = 128, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="parallel trainings, one core each")
    given = parser.parse_args()
    losses: dict[str, list[float]] = {name: [] for name in VARIANTS}
    runs = [(seed, name) for seed in range(given.seeds) for name in VARIANTS]
    with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn")) as workers:
        found = workers.map(
            loss_of, *zip(*runs, strict=True), repeat(given.folder), repeat(given.steps)
        )
        for (seed, name), loss in zip(runs, found, strict=True):
            losses[name].append(loss)
            print(f"seed {seed}, {name}: {loss:.4f}", flush=True)
    rows = [
        ResultRow(
            {"variant": name},
            {
                "loss": statistics.mean(found),
                "loss_stdev": statistics.stdev(found) if len(found) > 1 else None,
                **{f"loss_seed_{seed}": loss for seed, loss in enumerate(found)},
                "tokens": given.steps * BATCH * LENGTH,
            },
        )
        for name, found in losses.items()
    ]
    Results(shlex.join(["python", *sys.argv]), tuple(rows)).write(given.out, force=True)


def loss_of(seed: int, variant: str, folder: Path, steps: int) -> float:
    """The loss of one variant, trained with the initial weights and batches of `seed`."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = new_model()
    layers = VARIANTS[variant]
    if layers is not None:
        ladderize.compile(model, layers=layers, lowering="aot_eager")
    return train(model, *read_bytes(folder / "text"), steps, seed)


def new_model() -> transformers.LlamaForCausalLM:
    """A byte-level Llama with eight layers, 16 blocks and 0.8 M parameters."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=8,
            num_attention_heads=6,
            num_key_value_heads=6,
            vocab_size=256,
            max_position_embeddings=LENGTH,
            use_cache=False,
            tie_word_embeddings=True,
        )
    )


def read_bytes(folder: Path) -> tuple[Tensor, Tensor]:
    """Rows of `LENGTH` bytes, for training and for measuring."""
    data = b"".join(path.read_bytes() for path in sorted(folder.glob("*.txt")))
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8)[: len(data) // LENGTH * LENGTH]
    rows = rows.view(-1, LENGTH).long()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return rows[:-512], rows[-512:]


def train(
    model: transformers.LlamaForCausalLM, rows: Tensor, held_out: Tensor, steps: int, seed: int
) -> float:
    """The loss on `held_out` after `steps` of AdamW, with warmup and a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    for _ in range(steps):
        ids = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        found = [float(model(input_ids=ids, labels=ids).loss) for ids in held_out.split(BATCH)]
    return statistics.mean(found)


if __name__ == "__main__":
    main()
