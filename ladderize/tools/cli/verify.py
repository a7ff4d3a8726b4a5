"""`ladderize verify ORIGINAL REWRITTEN`: check a rewritten model, on all its ranks."""

from pathlib import Path
from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, print_json, refuse, running, working

Rewritten = Annotated[
    list[Path],
    typer.Argument(
        help="Output of `ladderize rewrite`: a .pt2 file, a directory, or one directory per rank "
        "if each host has its own copy."
    ),
]
Dtype = Annotated[
    list[str] | None,
    typer.Option(help="Also compute in this dtype: float64, float32, float16, bfloat16."),
]
Variants = Annotated[
    int | None, typer.Option(min=1, help="Sets of random inputs. \\[default: 3 dynamic, 2 static]")
]
Memory = Annotated[
    int,
    typer.Option(min=1, help="Memory limit of one run, in MiB; larger input sizes are skipped."),
]
DTYPES = ("float64", "float32", "float16", "bfloat16")


def verify(
    original: flags.Model,
    rewritten: Rewritten,
    layers: flags.Layers = None,
    blocks: flags.Blocks = None,
    staleness: flags.Staleness = None,
    expect_blocks: flags.ExpectBlocks = None,
    dtype: Dtype = None,
    variants: Variants = None,
    memory: Memory = 256,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Check a rewritten model against a reference ladder that is built from the original.

    Without --layers, --blocks and --staleness, the options are those in the config.json of an hf:
    model, or else those recorded in REWRITTEN. The original is traced with the sizes of REWRITTEN.
    """
    unknown = [name for name in dtype or () if name not in DTYPES]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is not one of {', '.join(DTYPES)}")
    options = flags.given(
        layers=layers, blocks=blocks, staleness=staleness, expect_blocks=expect_blocks
    )
    with running("verify", debug, json), working(f"verifying {rewritten[0]}"):
        flags.refuse_mistakes(original, **options)
        import torch

        from ladderize.testing.verify import verify as check
        from ladderize.testing.verify.candidate import read_candidate
        from ladderize.tools.sources.opened_models import entry_called, open_model
        from ladderize.tools.sources.traced_sizes import sizes_of

        entry = entry_called(original)
        options = options if entry is None else entry.fill(options)  # refused before files are read
        candidate = read_candidate(rewritten)
        source = open_model(original, sizes_of(candidate.parts[0].program))
        if entry is None and source.entry is not None:  # the entry comes with a factory's model
            options = source.entry.fill(options)
        dtypes = [getattr(torch, name) for name in dtype] if dtype else None
        found = check(
            source.program(),
            candidate,
            dtypes=dtypes,
            variants=variants,
            max_bytes=memory << 20,
            **options,
        )
    if json:
        print_json(found.to_json())
    else:
        console().print(found, highlight=False)
    if not found.ok:
        raise refuse("verify", found.summary())
