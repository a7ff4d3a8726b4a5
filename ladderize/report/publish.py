"""Publish the report of a compilation: `last_report()`, the debug folder, torch's trace."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path

import torch

from ladderize import compat
from ladderize.config.options import LadderConfig
from ladderize.report.data import SAID, GraphReport
from ladderize.report.files import write_file
from ladderize.report.report import Report

# Width of the report in files.
WIDTH = 120

_last: Report | None = None
_collecting: ContextVar[list[Report] | None] = ContextVar("_collecting", default=None)


def last_report() -> Report | None:
    """The report of the latest compilation in this process, including refused ones.

    It is None before the first compilation and after `torch._dynamo.reset()`. Each compilation of a
    graph makes a report, so a recompilation for another shape or for `eval()` replaces it. If
    several threads compile, it is the report of the one that finished last.

    Example:
        >>> compiled = torch.compile(model, backend="ladderize")
        >>> compiled(input_ids)
        >>> len(ladderize.last_report().blocks)
        8
    """
    return _last


@contextmanager
def collect_reports() -> Iterator[list[Report]]:
    """Collect the reports of everything that this thread compiles or rewrites in the body."""
    collected: list[Report] = []
    token = _collecting.set(collected)
    try:
        yield collected
    finally:
        _collecting.reset(token)


def forget() -> None:
    """Forget the last report; called by `torch._dynamo.reset()`."""
    global _last
    _last = None


def as_report(graph: GraphReport, config: LadderConfig) -> Report:
    """A report of one graph."""
    return Report((graph,), options=shown_options(config), versions=versions())


def publish(report: Report, folder: Path | None, *, is_amended: bool = False) -> None:
    """Keep `report` for `last_report`, hand it to tlparse, and write it to `folder`.

    Args:
        report: report to publish.
        folder: folder to write it to, if any.
        is_amended: whether it replaces the report published before, of the same graph.
    """
    global _last
    _last = report
    if (collected := _collecting.get()) is not None:
        if is_amended and collected:
            collected.pop()
        collected.append(report)
    compat.trace_artifact("ladderize_report", "string", lambda: report.table(True, WIDTH))
    compat.trace_artifact("ladderize_report_data", "json", report.to_json)
    write(report, folder)


def write(report: Report, folder: Path | None) -> None:
    """Write report.txt and report.json to `folder`, if there is one."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "report.txt", report.table(full=True, width=WIDTH) + "\n", force=True)
    write_file(folder / "report.json", report.to_json() + "\n", force=True)


def changed_options(config: LadderConfig) -> tuple[tuple[str, str], ...]:
    """The options that differ from their defaults, as text."""
    default = vars(LadderConfig(checkpoint=config.checkpoint))
    return tuple(
        (name, str(value)) for name, value in vars(config).items() if value != default[name]
    )


def shown_options(config: LadderConfig) -> tuple[tuple[str, str], ...]:
    """`changed_options`, after the ladder entry of the model's config.json if there is one."""
    said = () if config.checkpoint is None else ((SAID, str(config.checkpoint)),)
    return (*said, *changed_options(config))


def versions() -> tuple[tuple[str, str], ...]:
    return (
        ("ladderize", version("ladderize")),
        ("torch", str(torch.__version__)),
        ("python", platform.python_version()),
    )
