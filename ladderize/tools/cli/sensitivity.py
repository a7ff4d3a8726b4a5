"""`ladderize sensitivity MODEL --text FILES`: measure which blocks are cheap to convert."""

from pathlib import Path
from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, counting, print_json, running, working

Shares = Annotated[
    str, typer.Option("--share", help="Shares of hidden communication to report, 0 to 1.")
]
Tokens = Annotated[int, typer.Option(min=1, help="Number of tokens to measure each set on.")]
Length = Annotated[int, typer.Option(min=2, help="Tokens per sequence.")]
Batch = Annotated[int, typer.Option(min=1, help="Sequences per run.")]
Width = Annotated[
    int, typer.Option(min=1, help="Number of candidate blocks measured each time a set grows.")
]
SetsAtOnce = Annotated[
    int, typer.Option(min=1, help="Sets per run, each on its own copy of the batch.")
]
HealTokens = Annotated[
    int,
    typer.Option(min=0, help="Choose among the best sets by healing each on this many tokens."),
]
Out = Annotated[
    Path | None,
    typer.Option(help='Write the sets to this file, for --blocks "plan.json:50%".'),
]
Plot = Annotated[
    Path | None, typer.Option(help="Draw the results to this file: .png, .svg or .pdf.")
]


def sensitivity(
    model: flags.Model,
    text: flags.Texts = None,
    share: Shares = "0.25,0.5,0.75,1",
    tokens: Tokens = 1024,
    length: Length = 128,
    batch: Batch = 4,
    width: Width = 8,
    sets_at_once: SetsAtOnce = 1,
    heal_tokens: HealTokens = 0,
    staleness: flags.Staleness = None,
    out: Out = None,
    plot: Plot = None,
    device: flags.Device = None,
    force: flags.Force = False,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Measure what converting each block costs, alone and in growing sets.

    The result is the best set of blocks for each share of hidden communication. With --out, an
    interrupted run continues where it stopped.
    """
    with running("sensitivity", debug, json):
        flags.refuse_mistakes(model)
        with working("loading torch"):
            import torch

            from ladderize.quality.runs.short_heals import heal_candidates
            from ladderize.quality.sensitivity.block_plans import sensitivity as measure
            from ladderize.report.files import refuse_file, write_file
            from ladderize.tools.pictures import refuse_picture
            from ladderize.tools.quality.sensitivity_chart import draw
            from ladderize.tools.quality.sensitivity_tables import show
            from ladderize.tools.quality.texts_of_model import model_with_batches, text_to_heal_on

        shares = flags.numbers(share, "--share", float)
        if out is not None:
            refuse_file(out, force)
        if plot is not None:
            refuse_picture(plot, force)
        with working(f"loading {model}"):
            measured = model_with_batches(
                model, text or [], tokens=tokens, length=length, batch=batch, device=device
            )
            rest = text_to_heal_on(measured) if heal_tokens else None
        with counting("measuring sets of blocks") as on_progress:
            found = measure(
                measured.model,
                measured.batches,
                shares=shares,
                width=width,
                sets_at_once=sets_at_once,
                notes=None if out is None else out.with_name(f"{out.name}.notes"),
                on_progress=on_progress,
                **flags.given(staleness=staleness),
            )
        if rest is not None:
            with counting("healing sets of blocks") as on_progress:
                found = heal_candidates(
                    found,
                    measured.model,
                    rest,
                    torch.cat([each["input_ids"] for each in measured.batches]),
                    shares=shares,
                    tokens=heal_tokens,
                    batch=batch,
                    on_progress=on_progress,
                )
        if out is not None:
            write_file(out, found.model_dump_json(indent=1) + "\n", force)
        if plot is not None:
            draw(found, plot, force)
    if json:
        print_json(found.model_dump_json(indent=1))
    else:
        show(found, shares, console(), out)
