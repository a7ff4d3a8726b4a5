"""`ladderize demo`: a sharded ladder on this machine."""

from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, running

Ranks = Annotated[int, typer.Option(min=2, help="Number of processes to shard the model over.")]
NumLayers = Annotated[
    int | None, typer.Option(min=1, help="Number of layers. \\[default: 4, or that of --hf]")
]
Configuration = Annotated[
    str | None,
    typer.Option(
        metavar="CONFIG_OR_DIR",
        help="Another causal LM: a local config.json or its folder. Only the configuration is "
        "read; the weights are random.",
    ),
]


def demo(
    ranks: Ranks = 2,
    layers: NumLayers = None,
    hf: Configuration = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Shard a small random Llama as a ladder over CPU processes on this machine."""
    with running("demo", debug, json):
        from ladderize.tools.demo import run_demo

        run_demo(console(), ranks, layers, hf, as_json=json)
