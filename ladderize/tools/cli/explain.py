"""`ladderize explain MODEL`: what was found, what would be done, and why not."""

from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, print_json, refuse, running, working

Full = Annotated[bool, typer.Option("--full", help="Show every block, not runs of alike layers.")]


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
    """Show the residual blocks of a model, and what a ladder of it reads. Nothing is compiled.

    Exit code 1 where it cannot be converted as asked. With --tp also how it would be sharded.
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
