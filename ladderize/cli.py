"""The `ladderize` command. Torch is imported by the verbs, so that `--help` answers at once."""

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

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        run_demo(console, ranks, layers, hf)
    except DemoError as error:
        if debug:
            raise
        typer.echo(f"ladderize demo: {error}", err=True)
        raise typer.Exit(1) from None
