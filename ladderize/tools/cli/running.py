"""The frame around a verb: progress on stderr, refusals, warnings and exit codes.

stdout    the result: tables, or JSON with --json
stderr    progress (on a terminal), warnings, the reason of a refusal
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

WIDTH = 100


def console() -> Console:
    """The console of stdout; `WIDTH` columns wide unless stdout is a terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


@contextmanager
def running(
    verb: str, debug: bool, as_json: bool = False, *, shows_report: bool = False
) -> Iterator[None]:
    """Run the body of a verb; an error ends the process with exit code 1 and the reason.

    Args:
        verb: name of the verb, for messages.
        debug: show tracebacks and all warnings.
        as_json: also print a refusal as JSON.
        shows_report: whether the verb prints the report, which lists what is kept whole.
    """
    with warnings.catch_warnings():
        if not debug:
            _tell_only_our_warnings(verb, shows_report)
        try:
            yield
        except (typer.Exit, typer.BadParameter, KeyboardInterrupt):
            raise
        except Exception as error:  # the one place where any error becomes an exit code
            if debug:
                raise
            if as_json:
                typer.echo(json.dumps({"ok": False, "error": _as_data(error)}, indent=1))
            raise refuse(verb, _reason(error)) from None


def refuse(verb: str, reason: str) -> typer.Exit:
    """Print the reason on stderr and return the exception to raise."""
    typer.echo(f"ladderize {verb}: {reason}", err=True)
    return typer.Exit(1)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show a spinner while the body runs, if stderr is a terminal."""
    with Console(stderr=True).status(text):
        yield


@contextmanager
def counting(text: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback of (done, total) that shows a bar on stderr, or a line every 10 %."""
    told = Console(stderr=True)
    if not told.is_terminal:
        yield _tell_tenths(text)
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=told, transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _tell_tenths(text: str) -> Callable[[int, int], None]:
    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        if (tenth := 10 * done // max(total, 1)) > told:
            told = tenth
            typer.echo(f"{text}: {done} of {total}", err=True)

    return tell


def print_json(text: str) -> None:
    typer.echo(text)


def _reason(error: Exception) -> str:
    """The error on one line, unless it has several reasons."""
    from ladderize.errors import LadderError

    if not isinstance(error, LadderError):
        text = " ".join(str(error).split())
        return f"unexpected {type(error).__name__}: {text} (--debug shows where)"
    if len(error.blockers) > 1:
        return str(error)
    parts = [error.summary, *map(str, error.blockers)]
    if error.cure:
        parts.append(f"What to do: {error.cure}")
    return " ".join(" ".join(parts).split())


def _as_data(error: Exception) -> dict[str, Any]:
    from ladderize.errors import LadderError

    if not isinstance(error, LadderError):
        return {"summary": f"{type(error).__name__}: {error}", "reasons": [], "cure": ""}
    reasons = [str(blocker) for blocker in error.blockers]
    return {"summary": error.summary, "reasons": reasons, "cure": error.cure}


def _tell_only_our_warnings(verb: str, shows_report: bool) -> None:
    from ladderize.errors import LadderWarning, ReportedWarning

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", LadderWarning)
    if shows_report:
        warnings.simplefilter("ignore", ReportedWarning)

    def tell(message: Any, *_: Any, **__: Any) -> None:
        typer.echo(f"ladderize {verb}: warning: {message}", err=True)

    warnings.showwarning = tell
