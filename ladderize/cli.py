"""The `ladderize` command. Torch is imported by the verbs, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

WIDTH = 100

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 refused with the reason on stderr, 2 usage."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ladderize {version('ladderize')}")
        raise typer.Exit


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


@app.callback()
def ladderize(
    version: Annotated[  # its callback does the work
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Rewrite residual models into ladder networks that hide tensor-parallel communication."""


@app.command()
def rewrite(
    program: Annotated[
        Path, typer.Argument(metavar="IN.pt2", help="What torch.export.save wrote.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="A new file; with --tp a new directory for ladderize.load."),
    ],
    tp: Annotated[
        int | None, typer.Option(min=2, help="Shard over so many tensor-parallel ranks.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help='Layers to convert: "all", "16:32", "last:16", "last:50%".')
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="The same, counted in blocks.")] = None,
    staleness: Annotated[int, typer.Option(min=0, help="How many blocks earlier to read.")] = 1,
    expect_blocks: Annotated[
        int | None, typer.Option(min=1, help="Refuse unless exactly so many are found.")
    ] = None,
    shard_vocabulary: Annotated[
        bool, typer.Option(help="With --tp: divide embedding and head by words too.")
    ] = True,
    debug_dir: Annotated[
        Path | None, typer.Option(help="Write each stage's graph and the report there.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Rewrite an exported program into its ladder form, and shard it."""
    from ladderize.aot.command import rewrite_file
    from ladderize.errors import LadderError

    given = {
        "layers": layers,
        "blocks": blocks,
        "staleness": staleness,
        "expect_blocks": expect_blocks,
        "shard_vocabulary": shard_vocabulary,
        "debug_dir": debug_dir,
    }
    try:
        options = {name: value for name, value in given.items() if value is not None}
        rewrite_file(_console(), program, out, tp, options)
    except LadderError as error:
        if debug:
            raise
        typer.echo(f"ladderize rewrite: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def demo(
    ranks: Annotated[int, typer.Option(min=2, help="Processes to shard the model over.")] = 2,
    layers: Annotated[
        int | None,
        typer.Option(min=1, help="Layers of the model. [default: 6, or what --hf says]"),
    ] = None,
    hf: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG_OR_DIR",
            help="Another causal LM: its local config.json, or the folder with it. Only the "
            "configuration is read; every rank gets the whole model with random weights.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Shard a small random Llama as a ladder, on CPU processes of this machine."""
    from ladderize.demo import DemoError, run_demo

    try:
        run_demo(_console(), ranks, layers, hf)
    except DemoError as error:
        if debug:
            raise
        typer.echo(f"ladderize demo: {error}", err=True)
        raise typer.Exit(1) from None
