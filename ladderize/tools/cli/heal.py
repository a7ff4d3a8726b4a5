"""`ladderize heal MODEL --blocks … --text FILES --out DIR`: train a ladder by distillation."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, print_json, running, working

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Folder with a causal LM and its tokenizer, or with one .gguf file."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the healed ladder; an unfinished run resumes.")]
FitTokens = Annotated[
    int,
    typer.Option(min=0, help="Before training, fit the weights that read the stream on N tokens."),
]
Tokens = Annotated[int, typer.Option(min=1, help="Number of tokens to train on.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Number of steps, instead of --tokens.")]
Batch = Annotated[int, typer.Option(min=1, help="Sequences per step and rank.")]
Length = Annotated[int, typer.Option(min=2, help="Tokens per sequence.")]
LearningRate = Annotated[
    float | None, typer.Option(help="Peak learning rate. \\[default: 1e-4, with --lora 1e-3]")
]
Lora = Annotated[
    int | None, typer.Option(min=1, help="Train LoRA adapters of this rank, not all weights.")
]
Temperature = Annotated[float, typer.Option(help="Temperature of both models' logits.")]
LabelWeight = Annotated[float, typer.Option(help="Weight of the cross entropy with the text.")]
StreamWeight = Annotated[
    float, typer.Option(help="Weight of the distance between the streams after each layer.")
]
BlendSteps = Annotated[
    int, typer.Option(min=0, help="Number of first steps that blend fresh and stale reads.")
]
SelfGenerated = Annotated[
    int, typer.Option(min=0, help="Number of training tokens that the model generates itself.")
]
Bf16 = Annotated[
    bool | None,
    typer.Option(help="Compute in bfloat16, with float32 weights. \\[default: on CUDA]"),
]
Seed = Annotated[int, typer.Option(help="Seed for the order of the text and for generated text.")]
Lowering = Annotated[str, typer.Option(help="Lowering: inductor, aot_eager or eager.")]
Force = Annotated[
    bool, typer.Option("--force", help="Overwrite a finished run, or one with other options.")
]


def heal(
    model: Model,
    out: Out,
    text: flags.Texts = None,
    layers: flags.Layers = None,
    blocks: flags.Blocks = None,
    staleness: flags.Staleness = None,
    fit_tokens: FitTokens = 0,
    tokens: Tokens = 100_000,
    steps: Steps = None,
    batch: Batch = 4,
    length: Length = 128,
    learning_rate: LearningRate = None,
    lora: Lora = None,
    temperature: Temperature = 1.0,
    label_weight: LabelWeight = 0.0,
    stream_weight: StreamWeight = 0.0,
    blend_steps: BlendSteps = 0,
    self_generated: SelfGenerated = 0,
    lowering: Lowering = "inductor",
    bf16: Bf16 = None,
    seed: Seed = 0,
    force: Force = False,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Train a ladder to compute what its standard model does (self-distillation).

    If interrupted, it saves a checkpoint, and the same command resumes. Under torchrun, training
    is data parallel.
    """
    with running("heal", debug, json):
        flags.refuse_mistakes(model)
        with working("loading torch"):
            from rich.console import Console

            from ladderize.quality.runs.heal_run import heal as run
            from ladderize.tools.quality.heal_progress import watcher_of
            from ladderize.tools.quality.heal_table import show

        with watcher_of(Console(stderr=True)) as watcher:
            result = run(
                model.removeprefix("hf:"),
                out,
                text or (),
                force=force,
                watcher=watcher,
                **flags.given(
                    layers=layers,
                    blocks=blocks,
                    staleness=staleness,
                    steps=steps,
                    learning_rate=learning_rate,
                    lora=lora,
                    bfloat16=bf16,
                ),
                fit_tokens=fit_tokens,
                tokens=tokens,
                batch=batch,
                length=length,
                temperature=temperature,
                label_weight=label_weight,
                stream_weight=stream_weight,
                blend_steps=blend_steps,
                self_generated=self_generated,
                lowering=lowering,
                seed=seed,
            )
    if os.environ.get("RANK", "0") != "0":
        return
    if json:
        print_json(result.to_json())
    else:
        show(result, out, console())
