"""`ladderize rewrite MODEL --out OUT`: write its ladder to a file, or sharded to a directory."""

import json as json_of
from pathlib import Path
from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, print_json, running, working

Out = Annotated[
    Path | None, typer.Option(help="A new .pt2 file; with --tp a new directory for ladderize.load.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Write nothing; print each read that would be rewired.")
]

StopAfter = Annotated[
    str | None,
    typer.Option(
        metavar="STEP",
        help="Run the pipeline up to this step, print the graph, write nothing. "
        "Steps are named after passes: RerouteReads, ShardBranches, DeferWaits.",
    ),
]


def rewrite(
    model: flags.Model,
    out: Out = None,
    tp: flags.Tp = None,
    dry_run: DryRun = False,
    stop_after: StopAfter = None,
    force: flags.Force = False,
    layers: flags.Layers = None,
    blocks: flags.Blocks = None,
    staleness: flags.Staleness = None,
    variant: flags.Variant = None,
    connectivity: flags.Connectivity = None,
    routed: flags.Routed = None,
    expect_blocks: flags.ExpectBlocks = None,
    shard_vocabulary: flags.ShardVocabulary = True,
    experts: flags.Experts = None,
    lowering: flags.Lowering = None,
    lowering_option: flags.LoweringOption = None,
    batch: flags.Batch = 2,
    length: flags.Length = 32,
    image_size: flags.ImageSize = 224,
    dynamic: flags.Dynamic = False,
    debug_dir: flags.DebugDir = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Rewrite a model into its ladder form and, with --tp, shard it.

    OUT is written atomically.
    """
    if out is None and not dry_run and stop_after is None:
        raise typer.BadParameter("required without --dry-run or --stop-after", param_hint="--out")
    options = flags.given(
        layers=layers,
        blocks=blocks,
        staleness=staleness,
        variant=variant,
        connectivity=connectivity,
        routed=routed or None,
        expect_blocks=expect_blocks,
        shard_vocabulary=shard_vocabulary,
        experts=experts,
        debug_dir=debug_dir,
    )
    before_lowering = dict(options)
    options |= flags.given(lowering=lowering)
    if lowering_option:
        options["lowering_options"] = flags.lowering_options(lowering_option)
    with running("rewrite", debug, json, shows_report=True):
        flags.refuse_mistakes(model, **before_lowering)
        with working("loading torch"):
            from ladderize.tools.cli.rewriting import graph_of_model, rewrite_model
            from ladderize.tools.sources.hugging_face import InputSizes

        sizes = InputSizes(batch, length, image_size, dynamic)
        if stop_after is not None:
            console().print(
                graph_of_model(model, sizes, tp, options, stop_after), markup=False, soft_wrap=True
            )
            return
        done = rewrite_model(model, sizes, None if dry_run else out, tp, options, force)
        if json:
            print_json(json_of.dumps(done.as_data(), indent=1))
        else:
            done.show(console())
