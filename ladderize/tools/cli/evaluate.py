"""`ladderize evaluate STANDARD LADDER --text FILES`: compare a ladder with its standard model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, counting, print_json, running, working

Standard = Annotated[
    str, typer.Argument(metavar="STANDARD", help="Folder of the standard model: DIR or hf:DIR.")
]
Ladder = Annotated[
    str,
    typer.Argument(
        metavar="LADDER",
        help="Folder of the ladder, or STANDARD again with --blocks or --layers: before healing.",
    ),
]
Tokens = Annotated[int, typer.Option(min=1, help="Number of tokens to compare.")]
Length = Annotated[int, typer.Option(min=2, help="Tokens per sequence.")]
Batch = Annotated[int, typer.Option(min=1, help="Sequences per run.")]
Tasks = Annotated[
    list[Path] | None,
    typer.Option("--task", help="YAML file of an lm-eval task with local data; repeatable."),
]
Lowering = Annotated[str, typer.Option(help="Lowering of the ladder: eager, aot_eager, inductor.")]


def evaluate(
    standard: Standard,
    ladder: Ladder,
    text: flags.Texts = None,
    tokens: Tokens = 16384,
    length: Length = 256,
    batch: Batch = 4,
    layers: flags.Layers = None,
    blocks: flags.Blocks = None,
    staleness: flags.Staleness = None,
    task: Tasks = None,
    lowering: Lowering = "eager",
    device: flags.Device = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Compare a ladder with its standard model: perplexity, KL divergence, top-1 agreement.

    Each has a 95 % interval over sequences. If the ladder's config.json names its converted
    blocks, no options are needed.
    """
    with running("evaluate", debug, json):
        flags.refuse_mistakes(standard, ladder)
        with working("loading torch"):
            from ladderize.quality.evaluation import evaluate as compare
            from ladderize.tools.quality.evaluation_tables import as_json, show, show_tasks
            from ladderize.tools.quality.task_scores import refuse_tasks, task_scores
            from ladderize.tools.quality.texts_of_model import (
                ladder_model,
                model_with_batches,
                tokenizer_of_model,
            )

        refuse_tasks(task or [])
        options = flags.given(layers=layers, blocks=blocks, staleness=staleness)
        with working(f"loading {standard} and {ladder}"):
            sizes: dict[str, Any] = {"tokens": tokens, "length": length, "batch": batch}
            measured = model_with_batches(standard, text or [], device=device, **sizes)
            other = ladder_model(ladder, options, lowering, device)
        with counting("comparing batches") as on_progress:
            found = compare(measured.model, other, measured.batches, on_progress)
        scores = {}
        for name, net in (("standard", measured.model), ("ladder", other)) if task else ():
            with working(f"lm-eval: {name}"):
                scores[name] = task_scores(net, tokenizer_of_model(standard), task or [], batch)
    if json:
        print_json(as_json(found, scores))
    else:
        show(found, console())
        if scores:
            show_tasks(scores, console())
