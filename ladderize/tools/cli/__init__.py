"""The `ladderize` command: `ladderize VERB MODEL [options]`, one file a verb.

Torch is imported by the verbs, so that `--help` answers at once. `arguments.py` holds the flags
that verbs share, `running.py` what happens around each: progress, refusals, exit codes.
"""

import gc
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from ladderize.tools.cli.bench import bench
from ladderize.tools.cli.demo import demo
from ladderize.tools.cli.doctor import doctor
from ladderize.tools.cli.evaluate import evaluate
from ladderize.tools.cli.explain import explain
from ladderize.tools.cli.heal import heal
from ladderize.tools.cli.plan import plan
from ladderize.tools.cli.plot import plot
from ladderize.tools.cli.rewrite import rewrite
from ladderize.tools.cli.sensitivity import sensitivity
from ladderize.tools.cli.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    explain,
    rewrite,
    verify,
    plot,
    plan,
    bench,
    sensitivity,
    heal,
    evaluate,
    demo,
    doctor,
):
    app.command()(verb)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 refused with the reason on stderr, 2 usage."""
    # What is imported and traced lasts to the end: the collector would walk it for nothing.
    gc.set_threshold(100_000, 20, 20)
    app()


_PARTS = (
    ("torch", ("torch",)),
    ("Inductor (a part of torch)", ("torch",)),
    ("Triton", ("triton", "pytorch-triton")),
    ("TensorRT", ("torch-tensorrt", "torch-tensorrt-rtx")),
    ("transformers", ("transformers",)),
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    typer.echo(f"ladderize {version('ladderize')}")
    for part, packages in _PARTS:
        found = [number for name in packages if (number := _version_of(name))]
        typer.echo(f"{part} {', '.join(found) or 'not installed'}")
    raise typer.Exit


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _print_manual(context: typer.Context, wanted: bool) -> None:
    if wanted:
        from ladderize.tools.cli.manual import manual_page

        typer.echo(manual_page(context, version("ladderize")))
        raise typer.Exit


@app.callback()
def ladderize(
    version: Annotated[  # its callback does the work
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the versions of ladderize, torch (Inductor), Triton and TensorRT.",
        ),
    ] = False,
    man: Annotated[
        bool,
        typer.Option(
            "--man",
            callback=_print_manual,
            is_eager=True,
            help="Print the man page: ladderize --man | man -l -",
        ),
    ] = False,
) -> None:
    """Rewrite residual models into ladder networks that hide tensor-parallel communication.

    MODEL is a .pt2 file, hf:DIR_OR_CONFIG (a local configuration of transformers; the weights are
    those of DIR, or random), hf:NAME (a shipped configuration, such as hf:llama or hf:llama-70b),
    or module:factory (a Python function that returns (model, args, kwargs)).
    """
