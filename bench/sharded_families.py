"""Shard every causal language model of transformers; compare values, list what stays whole.

    PYTHONPATH=. nice python bench/sharded_families.py [FAMILY ...] --out FILE

Each family is built tiny (`tiny_families.py`), traced once, and sharded over 2 and 4 ranks. The
ranks run in lockstep in one process, and are compared with the unsharded ladder, run op by op.
A run continues where FILE ends; named families are measured again. Families that cannot be built
or are refused also have rows.
"""

import argparse
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.export import ExportedProgram, export
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from families_table import family, read_rows
from helpers.lockstep import ShardedProgram
from tiny_families import FAMILIES, feed, tiny

from ladderize import LadderError, rewrite
from ladderize.graph.flops import flops_of
from ladderize.sharding.plan import ShardPlan
from ladderize.sharding.undivided import beyond_share
from ladderize.tools.bench.record import Key, ResultRow, Results, Values

RANKS = (2, 4)
TOLERANCE = 1e-4
COLUMNS = ("family", "ranks", "difference", "reductions", "a block", "bytes", "FLOPs", "outcome")
UNMEASURED: dict[str, float | None] = {
    "difference": None,
    "reductions": None,
    "blocks": None,
    "whole_bytes_fraction": None,
    "whole_flops_fraction": None,
}


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [] if options.anew else read(options.out)
    for name in options.families or [f for f in FAMILIES if f not in {family(r) for r in rows}]:
        started = time.perf_counter()
        found = list(measure(name, options.seconds, options.why))
        rows = sorted([r for r in rows if family(r) != name] + found, key=sort_key)
        Console(stderr=True).print(
            f"{name}: {time.perf_counter() - started:.0f} s", highlight=False
        )
        show(found, Console(stderr=True, width=200))
        if options.out:
            results = Results("python bench/sharded_families.py", tuple(rows))
            results.write(options.out, force=True)
    show(rows, Console())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="model types of transformers; default: all")
    parser.add_argument("--out", type=Path, help="results, written after each family")
    parser.add_argument("--anew", action="store_true", help="discard the results in the file")
    parser.add_argument("--seconds", type=int, default=300, help="time limit per family")
    parser.add_argument("--why", action="store_true", help="print what stays whole, and tracebacks")
    return parser.parse_args()


def read(path: Path | None) -> list[ResultRow]:
    return [] if path is None or not path.exists() else read_rows(path)


def sort_key(row: ResultRow) -> tuple[str, int]:
    return family(row), int(row.key["ranks"])


# ---- one family


def measure(name: str, seconds: int, explains: bool) -> Iterator[ResultRow]:
    """A row for each number of ranks; a single row if there is no program."""
    try:
        with limited(seconds):
            program, expected = trace(name)
    except Exception as error:
        if explains:
            traceback.print_exc()
        yield row(name, 0, f"cannot be built: {first_line(error)}")
        return
    for num_ranks in RANKS:
        try:
            with limited(seconds):
                yield shard(name, num_ranks, program, expected, explains)
        except LadderError as error:
            yield row(name, num_ranks, f"refused: {reason(error)}")
        except Exception as error:
            if explains:
                traceback.print_exc()
            yield row(name, num_ranks, f"fails: {first_line(error)}")


def trace(name: str) -> tuple[ExportedProgram, list[torch.Tensor] | LadderError]:
    """The program, and the ladder's results on one rank, or why there is no ladder."""
    model, inputs = tiny(name), feed()
    with torch.no_grad():
        program = export(model, (), inputs, strict=False)
        try:
            return program, tensors(rewrite(program).module()(**inputs))
        except LadderError as error:
            return program, error


def shard(
    name: str,
    num_ranks: int,
    program: ExportedProgram,
    expected: list[torch.Tensor] | LadderError,
    explains: bool,
) -> ResultRow:
    if isinstance(expected, LadderError):
        raise expected
    sharded = ShardedProgram(program, num_ranks)
    if explains:
        print(*sharded.plan.describe(), sep="\n")
    with torch.no_grad():
        outputs = [tensors(out) for out in sharded(**feed())]
    error = max(largest_difference(out, expected) for out in outputs)
    found: dict[str, float | None] = {
        "difference": error,
        "reductions": sharded.plan.num_reductions,
        "blocks": sum(len(stream.blocks) for stream in sharded.rewritten.streams),
        **shares(sharded, program),
    }
    outcome = "divided" if error <= TOLERANCE else "WRONG"
    return row(name, num_ranks, outcome, kept(sharded.plan), found)


def largest_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference relative to the largest value, as in `testing.assert_close`."""
    pairs = zip(found, expected, strict=True)
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs if b.numel()
    )


def shares(sharded: ShardedProgram, program: ExportedProgram) -> dict[str, float]:
    """The shares of all weights and FLOPs that stay whole on each rank."""
    weights = [p for p in program.parameters() if p.dim() > 1]
    held = beyond_share(sum(p.numel() * p.element_size() for p in weights), sharded.num_ranks)
    work = beyond_share(sum(map(flops_of, program.graph.nodes)), sharded.num_ranks)
    whole = sharded.plan.whole
    return {
        "whole_bytes_fraction": sum(w.num_bytes for w in whole) / max(held, 1),
        "whole_flops_fraction": sum(w.flops for w in whole) / max(work, 1),
    }


def kept(plan: ShardPlan) -> str:
    """What stays whole and why, each reason once, without places."""
    reasons = (blocker.what for whole in plan.whole for blocker in whole.reasons)
    return "; ".join(dict.fromkeys(map(shortened, reasons)))


def shortened(reason: str) -> str:
    """`layers.3.mlp.gate.weight: why (where)` -> `mlp.gate.weight: why`."""
    names, colon, why = reason.partition(": ")
    behind = [n.split(".") for n in names.split(", ")]
    short = [
        ".".join(n[1 + max((i for i, p in enumerate(n) if p.isdigit()), default=-1) :])
        for n in behind
    ]
    return f"{', '.join(short)}{colon}{why}".split(" (")[0].split(" in model.")[0]


def row(
    name: str,
    num_ranks: int,
    outcome: str,
    whole: str = "",
    values: Values | None = None,
) -> ResultRow:
    key: Key = {"family": name, "ranks": num_ranks, "outcome": outcome, "whole": whole}
    return ResultRow(key, UNMEASURED if values is None else values)


def tensors(result: Any) -> list[torch.Tensor]:
    floating = (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
    return [leaf for leaf in floating if leaf.is_floating_point()]


def reason(error: LadderError) -> str:
    blockers = "; ".join(dict.fromkeys(shortened(blocker.what) for blocker in error.blockers[:3]))
    return f"{error.summary} {blockers}"


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"[:200]


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after this many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"takes more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


# ---- shown


def show(rows: Iterable[ResultRow], console: Console) -> None:
    table = Table(*COLUMNS)
    for found in rows:
        table.add_row(*cells(found))
    console.print(table)


def cells(found: ResultRow) -> tuple[str, ...]:
    key, values = found.key, found.values
    start = (str(key["family"]), str(key["ranks"]))
    end = " — ".join(filter(None, (str(key["outcome"]), str(key["whole"]))))
    if values["difference"] is None:
        return (*start, *[""] * 5, end)
    blocks, reductions = int(values["blocks"] or 0), int(values["reductions"] or 0)
    return (
        *start,
        f"{float(values['difference']):.0e}",
        str(reductions),
        f"{reductions / blocks:.3g}",
        f"{values['whole_bytes_fraction']:.1%}",
        f"{values['whole_flops_fraction']:.1%}",
        end,
    )


if __name__ == "__main__":
    main()
