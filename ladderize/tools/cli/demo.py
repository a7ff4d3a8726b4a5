"""`ladderize demo`: a sharded ladder on this machine, in a minute."""

from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, running

Ranks = Annotated[int, typer.Option(min=2, help="Processes to shard the model over.")]
NumLayers = Annotated[
    int | None, typer.Option(min=1, help="Layers of the model. [default: 6, or what --hf says]")
]
Configuration = Annotated[
    str | None,
    typer.Option(
        metavar="CONFIG_OR_DIR",
        help="Another causal LM: its local config.json, or the folder with it. Only the "
        "configuration is read; every rank gets the whole model with random weights.",
    ),
]


def demo(
    ranks: Ranks = 2,
    layers: NumLayers = None,
    hf: Configuration = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Shard a small random Llama as a ladder, on CPU processes of this machine."""
    with running("demo", debug, json):
        from ladderize.tools.demo import run_demo

        run_demo(console(), ranks, layers, hf, as_json=json)
