"""The verb `ladderize rewrite`: a `.pt2` file in; another one, or a sharded directory, out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ladderize.aot.archive import read_program
from ladderize.aot.files import refuse_existing, write_program, write_shards
from ladderize.aot.localize import LocalProgram
from ladderize.aot.parallelize import aot_config
from ladderize.programs import rewrite
from ladderize.report import last_report


def rewrite_file(
    console: Console, path: Path, out: Path, num_ranks: int | None, options: Mapping[str, Any]
) -> None:
    """Read, rewrite, write, and say what was done.

    Raises:
        LadderError: whatever keeps one of the three from being done; `out` is not there then.
    """
    config = aot_config(**options)
    refuse_existing(out)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        progress.add_task(f"reading {path.name}", total=None)
        program = read_program(path)
        if num_ranks is None:
            write_program(rewrite(program, **options), out)
            local = None
        else:
            local = write_shards(program, out, num_ranks, config, progress)
    report = last_report()
    assert report is not None
    console.print(report.table(False, console.width), markup=False, highlight=False)
    if local is not None:
        console.print(f"\n{describe_bytes(local)}", highlight=False)
    console.print(f"written to {out}", highlight=False)


def describe_bytes(local: LocalProgram) -> str:
    """Bytes of a rank and of the whole, as one line."""
    each, whole = local.bytes_per_rank / 2**20, local.bytes_in_all / 2**20
    return f"{each:,.1f} MiB on each of {local.num_ranks} ranks, {whole:,.1f} MiB in all"
