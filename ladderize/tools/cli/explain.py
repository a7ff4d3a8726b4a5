"""`ladderize explain MODEL`: what was found, what would be done, and why not."""

from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, print_json, refuse, running, working

Full = Annotated[
    bool, typer.Option("--full", help="Show every block instead of folding equal layers.")
]


def explain(
    model: flags.Model,
    tp: flags.Tp = None,
    experts: flags.Experts = None,
    layers: flags.Layers = None,
    blocks: flags.Blocks = None,
    staleness: flags.Staleness = None,
    variant: flags.Variant = None,
    connectivity: flags.Connectivity = None,
    routed: flags.Routed = None,
    expect_blocks: flags.ExpectBlocks = None,
    batch: flags.Batch = 2,
    length: flags.Length = 32,
    image_size: flags.ImageSize = 224,
    full: Full = False,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Show the residual blocks of a model and what its ladder reads. Nothing is compiled.

    With --tp, also show how it would be sharded. The exit code is 1 if the model cannot be
    converted as requested.
    """
    options = flags.given(
        layers=layers,
        blocks=blocks,
        staleness=staleness,
        variant=variant,
        connectivity=connectivity,
        routed=routed or None,
        expect_blocks=expect_blocks,
        experts=experts,
    )
    with running("explain", debug, json, shows_report=True), working(f"tracing {model}"):
        flags.refuse_mistakes(model, **options)
        from ladderize.config.ahead_of_time import aot_config
        from ladderize.tools.sources.hugging_face import InputSizes
        from ladderize.tools.sources.opened_models import open_model

        source = open_model(model, InputSizes(batch, length, image_size), has_weights=False)
        config = aot_config(source.entry, **options)
        if tp is None:
            report = source.explain(config)
        else:
            from ladderize.frontends.sharded.localize import explain_local

            report = explain_local(source.program(), tp, config)
    if json:
        print_json(report.to_json())
    else:
        out = console()
        out.print(report.table(full, out.width), markup=False, highlight=False)
    if not report.ok:
        raise refuse("explain", report.refused[0].summary)
