"""What `ladderize rewrite` does: a model in; a `.pt2` file, a sharded directory or a diff out."""

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ladderize.config.ahead_of_time import aot_config
from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError
from ladderize.frontends.rewrite import graph_after, rewrite_program
from ladderize.frontends.sharded.directory import refuse_existing
from ladderize.frontends.sharded.localize import GROUP, LocalProgram, localize
from ladderize.frontends.sharded.program_files import write_program, write_shards
from ladderize.passes.rewriting_state import RankGroup
from ladderize.report import Report
from ladderize.tools.sources.hugging_face import InputSizes
from ladderize.tools.sources.opened_models import open_model


@dataclass(frozen=True)
class Done:
    """The result of `rewrite_model`.

    Attributes:
        report: report of the rewrite.
        local: rank-local program, None if the model was not sharded.
        out: path that was written, None in a dry run.
    """

    report: Report
    local: LocalProgram | None
    out: Path | None

    def show(self, console: Console) -> None:
        console.print(self.report.table(False, console.width), markup=False, highlight=False)
        if self.local is not None:
            each, whole = self.local.bytes_per_rank / 2**20, self.local.bytes_in_all / 2**20
            console.print(
                f"\n{each:,.1f} MiB on each of {self.local.num_ranks} ranks, "
                f"{whole:,.1f} MiB in all",
                highlight=False,
            )
            for line in self.local.engines:
                console.print(line, highlight=False, markup=False)
        if self.out is not None:
            console.print(f"written to {self.out}", highlight=False)
        else:
            console.print(f"\n{self.report.diff()}", markup=False, highlight=False)
            console.print("nothing was written (dry run)", highlight=False)

    def as_data(self) -> dict[str, Any]:
        diff = [str(edit) for edit in self.report.diff()]
        data = {"report": json.loads(self.report.to_json()), "diff": diff}
        if self.local is not None:
            data["bytes_per_rank"] = self.local.bytes_per_rank
            data["plan"] = list(self.local.lines)
        return {"ok": True, "written": str(self.out) if self.out else None, **data}


def rewrite_model(
    name: str,
    sizes: InputSizes,
    out: Path | None,
    num_ranks: int | None,
    options: Mapping[str, Any],
    force: bool = False,
) -> Done:
    """Read or trace the model called `name`, rewrite it, and write it to `out`.

    Args:
        name: MODEL, as on the command line.
        sizes: input sizes of an `hf:` model.
        out: output file, or directory if `num_ranks` is given; None writes nothing.
        num_ranks: number of ranks to shard over; None does not shard.
        options: options of `LadderConfig`.
        force: overwrite `out`.

    Raises:
        LadderError: the model cannot be rewritten or written; `out` is left unchanged.
    """
    is_written = out is not None and num_ranks is not None
    _config(None, options, is_written)  # refuse invalid options before the model is opened
    if out is not None:
        refuse_existing(out, force)
    told = Console(stderr=True)
    with (
        _stopped_by_sigterm(),
        Progress(console=told, transient=True, disable=not told.is_terminal) as progress,
    ):
        task = progress.add_task(f"tracing {name}", total=None)
        source = open_model(name, sizes)
        config = _config(source.entry, options, is_written)
        program = source.program()
        progress.update(task, description="rewriting")
        if num_ranks is None:
            rewritten, report = rewrite_program(program, config)
            if out is not None:
                write_program(rewritten, out, config, force)
            return Done(report, None, out)
        if out is not None:
            local = write_shards(program, out, num_ranks, config, progress, force)
        else:
            local = localize(program, num_ranks, config)
    assert local.report is not None
    return Done(local.report, local, out)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that partial output is removed."""

    def stop(*_: object) -> None:
        raise SystemExit("ladderize rewrite: stopped by SIGTERM; nothing was written")

    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def graph_of_model(
    name: str, sizes: InputSizes, num_ranks: int | None, options: Mapping[str, Any], stop_after: str
) -> str:
    """The graph of the model called `name` after the step `stop_after`, as Python code.

    Raises:
        LadderError: a step up to `stop_after` refused the model, or no step has that name.
    """
    aot_config(**options)  # refuse invalid options before the model is opened
    source = open_model(name, sizes)
    config = aot_config(source.entry, **options)
    ranks = None if num_ranks is None else RankGroup(num_ranks, GROUP)
    gm = graph_after(source.program(), config, ranks, stop_after)
    return gm.print_readable(print_output=False, include_stride=False)


def _config(
    entry: LadderEntry | None, options: Mapping[str, Any], is_written: bool
) -> LadderConfig:
    """The configuration. TensorRT engines can only be written into a sharded directory."""
    if options.get("lowering") != "tensorrt":
        return aot_config(entry, **options)
    if not is_written:
        raise LadderError(
            "Engines can only be written into a sharded directory.", cure="give --tp and --out"
        )
    return LadderConfig.from_options(options, checkpoint=entry)
