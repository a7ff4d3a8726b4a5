"""`ladderize plan MODEL --hardware h100x8-nvlink`: predict the gain of a ladder on hardware."""

from pathlib import Path
from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, print_json, running, working

Hardware = Annotated[
    str, typer.Option(help="DEVICExRANKS-LINK; an unknown name lists the known ones.")
]
Batches = Annotated[
    str | None,
    typer.Option(
        "--batch",
        help="Comma-separated batch sizes. \\[default: 1,4,16,64, or that of MODEL's own inputs]",
    ),
]
Prompt = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Prompt tokens per example. \\[default: 1024, or the length of MODEL's own inputs]",
    ),
]
Sensitivity = Annotated[
    Path | None,
    typer.Option(help="Output of ladderize sensitivity: also show tokens/s against damage."),
]
Desync = Annotated[
    int | None,
    typer.Option(min=2, help="Also predict a desync residual: every N-th block is reduced."),
]
Experts = Annotated[
    str,
    typer.Option(
        help='"tensor" splits every expert over the ranks; "expert" gives each rank whole ones, '
        "and tokens move by all-to-all."
    ),
]
New = Annotated[int, typer.Option(min=1, help="Generated tokens per example.")]

# Batch and length of the trace; costs are scaled from it.
_TRACED = (2, 32)


def plan(
    model: flags.Model,
    hardware: Hardware = "h100x8-nvlink",
    batch: Batches = None,
    prompt: Prompt = None,
    new: New = 512,
    sensitivity: Sensitivity = None,
    desync: Desync = None,
    experts: Experts = "tensor",
    layers: flags.Layers = None,
    blocks: flags.Blocks = None,
    staleness: flags.Staleness = None,
    connectivity: flags.Connectivity = None,
    routed: flags.Routed = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Predict tokens/s of the standard model, the ladder, parallel blocks and the bound.

    The model is traced once, without weights. Nothing is compiled or measured.
    """
    batches = flags.numbers(batch, "--batch", int)
    options = flags.given(
        layers=layers,
        blocks=blocks,
        staleness=staleness,
        connectivity=connectivity,
        routed=routed or None,
    )
    with running("plan", debug, json):
        flags.refuse_mistakes(model, **options)
        with working("loading torch"):
            from ladderize.config.ahead_of_time import aot_config
            from ladderize.config.block_plan import read_block_plan
            from ladderize.config.hardware import hardware_of
            from ladderize.tools.predict.planning import plan as predict
            from ladderize.tools.predict.planning.plan_tables import show
            from ladderize.tools.predict.planning.routed import routed_experts
            from ladderize.tools.predict.planning.workload import traced_examples
            from ladderize.tools.sources.hugging_face import InputSizes
            from ladderize.tools.sources.model_names import is_configuration
            from ladderize.tools.sources.opened_models import Module as ModelSource
            from ladderize.tools.sources.opened_models import open_model

        machine = hardware_of(hardware)
        measured = None if sensitivity is None else read_block_plan(sensitivity)
        with working(f"tracing {model}"):
            source = open_model(model, InputSizes(*_TRACED), has_weights=False)
            report = source.explain(aot_config(source.entry, **options))
        if not is_configuration(model) and report.streams:
            own_batch, own_length = traced_examples(report.streams[0].segments[0])
            batches, prompt = batches or (own_batch,), prompt or own_length
        batches, prompt = batches or (1, 4, 16, 64), prompt or 1024
        with working("planning"):
            mixtures = routed_experts(source.model) if isinstance(source, ModelSource) else None
            found = predict(
                report, machine, batches, prompt, new, measured, experts, mixtures, desync
            )
    if json:
        print_json(found.to_json())
    else:
        show(found, console())
