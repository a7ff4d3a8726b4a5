"""`ladderize bench MODEL`: measure what hiding communication gains, in one run."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, print_json, running, working

Ranks = Annotated[int, typer.Option(min=1, help="Number of tensor-parallel ranks; 1: no mesh.")]
Links = Annotated[
    str | None,
    typer.Option("--link", help="Names of links to emulate: nvlink-8,pcie-8,ethernet-10g."),
]
Shares = Annotated[
    str | None,
    typer.Option(
        "--share", help="Or: emulated latency as a fraction of a block's compute time: 0.3,0.6,0.9."
    ),
]
Alphas = Annotated[
    str | None, typer.Option("--alpha-us", help="Or: emulated latencies in microseconds: 0,50,200.")
]
Bandwidth = Annotated[
    float | None, typer.Option(min=0.001, help="With --alpha-us: GB/s. \\[default: no limit]")
]
Batches = Annotated[str, typer.Option("--batch", help="Batch sizes of an hf: model: 1,4.")]
Lengths = Annotated[str, typer.Option("--length", help="Tokens per sequence: 64,128.")]
New = Annotated[int, typer.Option(min=1, help="Free positions in the KV cache, in tokens.")]
Phases = Annotated[
    str,
    typer.Option(
        "--phase", help="Any of prefill,decode, or training for a model with its own inputs."
    ),
]
Written = Annotated[
    str, typer.Option(help="MODEL of a hand-written ladder, measured as the variant written.")
]
Variants = Annotated[
    str | None, typer.Option(help="Any of standard,written,ladder,parallel,bound,free.")
]
Repeats = Annotated[int, typer.Option(min=1, help="Timed steps per variant.")]
Warmup = Annotated[int, typer.Option(min=0, help="Untimed steps before the timed ones.")]
Lowering = Annotated[
    str, typer.Option(help="Lowering of all variants: inductor, aot_eager or eager.")
]
Graphs = Annotated[bool, typer.Option(help="On CUDA: use CUDA graphs (mode=reduce-overhead).")]
Device = Annotated[
    str | None, typer.Option(help="cpu or cuda. \\[default: cuda if each rank has a device]")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads per rank.")]
Out = Annotated[Path | None, typer.Option(help="Write the results to this file, as JSON.")]
Plot = Annotated[
    Path | None, typer.Option(help="Draw the results to this file: .png, .svg or .pdf.")
]


def bench(
    model: flags.Model,
    ranks: Ranks = 2,
    link: Links = None,
    share: Shares = None,
    alpha_us: Alphas = None,
    bandwidth: Bandwidth = None,
    batch: Batches = "1",
    length: Lengths = "128",
    new: New = 16,
    phase: Phases = "prefill",
    variants: Variants = None,
    written: Written = "",
    staleness: flags.Staleness = None,
    layers: flags.Layers = None,
    shard_vocabulary: flags.ShardVocabulary = True,
    repeats: Repeats = 15,
    warmup: Warmup = 3,
    lowering: Lowering = "inductor",
    graphs: Graphs = True,
    threads: Threads = 1,
    device: Device = None,
    out: Out = None,
    plot: Plot = None,
    force: flags.Force = False,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Time the ladder and the standard model in turns, under torchrun or by itself.

    Without GPUs, the ranks are processes on this machine with an emulated link. On CUDA they use
    NCCL, and the exposed time is read from a trace.
    """
    with running("bench", debug, json):
        flags.refuse_mistakes(model, **flags.given(layers=layers, staleness=staleness))
        with working("loading torch"):
            from rich.console import Console

            from ladderize.report.files import refuse_file
            from ladderize.tools.bench.bench_settings import (
                VARIANTS,
                Settings,
                choose_links,
                default_device,
            )
            from ladderize.tools.bench.chart import draw
            from ladderize.tools.bench.result_tables import show
            from ladderize.tools.bench.run import run_benchmark
            from ladderize.tools.pictures import refuse_picture
            from ladderize.tools.sources.opened_models import entry_called

        ladder = flags.given(layers=layers, staleness=staleness)
        entry = entry_called(model)
        if entry is not None:
            ladder = entry.fill(ladder)
        if plot is not None:
            refuse_picture(plot, force)
        if out is not None:
            refuse_file(out, force)
        settings = Settings(
            model,
            ranks,
            choose_links(
                flags.words(link),
                flags.numbers(share, "--share", float),
                [1e-6 * alpha for alpha in flags.numbers(alpha_us, "--alpha-us", float)],
                None if bandwidth is None else bandwidth * 1e9,
                ranks,
            ),
            phases=flags.words(phase),
            batches=flags.numbers(batch, "--batch", int),
            lengths=flags.numbers(length, "--length", int),
            new=new,
            variants=flags.words(variants) or tuple(VARIANTS),
            written=written,
            repeats=repeats,
            warmup=warmup,
            lowering=lowering,
            graphs=graphs,
            threads=threads,
            device=device or default_device(ranks),
            ladder={"layers": "all", **ladder} if "blocks" not in ladder else ladder,
            checkpoint=entry,
            shard_vocabulary=shard_vocabulary,
        )
        command = shlex.join(["ladderize", *sys.argv[1:]])
        results = run_benchmark(settings, command, Console(stderr=True))
        if results is None:
            return
        measured = {row.key["variant"] for row in results.rows}
        if "parallel" in settings.variants and "parallel" not in measured:
            typer.echo(
                "ladderize bench: skipping parallel: its blocks cannot run in parallel", err=True
            )
        if out is not None:
            results.write(out, force)
        if plot is not None:
            draw(results, plot, force)
    if json:
        print_json(results.to_json())
    else:
        console().print(f"{results.subject}\n", highlight=False, markup=False)
        show(console(), results.rows)
