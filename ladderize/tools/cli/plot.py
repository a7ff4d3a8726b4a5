"""`ladderize plot MODEL --out plot.html`: draw the blocks and a step."""

from pathlib import Path
from typing import Annotated

import typer

from ladderize.tools.cli import arguments as flags
from ladderize.tools.cli.running import console, print_json, refuse, running, working

Out = Annotated[
    Path, typer.Option(help="Output file: .html (a self-contained page), .svg or .png.")
]
Perfetto = Annotated[
    Path | None, typer.Option(help="Also write the timeline to this file, for ui.perfetto.dev.")
]
TraceStandard = Annotated[
    Path | None, typer.Option(help="Trace of the standard model, from export_chrome_trace.")
]
TraceLadder = Annotated[Path | None, typer.Option(help="Trace of the ladder.")]
Hardware = Annotated[
    str, typer.Option(help="Hardware to predict for: DEVICExRANKS-LINK, such as h100x4-pcie.")
]
Dark = Annotated[
    bool, typer.Option("--dark", help="Dark colors for .svg and .png; a page has both.")
]


def plot(
    model: flags.Model,
    out: Out,
    perfetto: Perfetto = None,
    trace_standard: TraceStandard = None,
    trace_ladder: TraceLadder = None,
    hardware: Hardware = "h100x8-nvlink",
    layers: flags.Layers = None,
    blocks: flags.Blocks = None,
    staleness: flags.Staleness = None,
    batch: flags.Batch = 1,
    length: flags.Length = 1024,
    image_size: flags.ImageSize = 224,
    dark: Dark = False,
    force: flags.Force = False,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Draw the blocks before and after the rewrite, the timeline of a step, and a table of layers.

    The timeline is read from the traces if given, otherwise predicted for the hardware.
    """
    options = flags.given(layers=layers, blocks=blocks, staleness=staleness)
    with running("plot", debug, json):
        flags.refuse_mistakes(model, **options)
        with working("loading torch"):
            from ladderize.config.ahead_of_time import aot_config
            from ladderize.config.hardware import hardware_of
            from ladderize.report.files import refuse_file
            from ladderize.report.present.lines import call_of
            from ladderize.tools.plot import draw
            from ladderize.tools.predict.timeline import measure, predict, write_perfetto
            from ladderize.tools.sources.hugging_face import InputSizes
            from ladderize.tools.sources.opened_models import open_model

        for path in filter(None, (out, perfetto)):
            refuse_file(path, force)
        machine = hardware_of(hardware)
        with working(f"tracing {model}"):
            source = open_model(model, InputSizes(batch, length, image_size), has_weights=False)
            report = source.explain(aot_config(source.entry, **options))
        if trace_standard is None and trace_ladder is None:
            timeline = predict(report, machine)
        else:
            timeline = measure(report, trace_standard, trace_ladder)
        with working("drawing"):
            theme = "dark" if dark else "light"
            where = "measured" if trace_standard or trace_ladder else f"on {hardware}"
            title = f"{model} {where}: {call_of(report)}".removesuffix(": ")
            draw(report, out, timeline, title=title, theme=theme, force=force)
            if perfetto is not None:
                write_perfetto(timeline, perfetto, force)
    if json:
        print_json(report.to_json())
    else:
        console().print(f"written to {out}", highlight=False)
        if perfetto is not None:
            console().print(f"written to {perfetto}: open it at ui.perfetto.dev", highlight=False)
    if not report.ok:
        raise refuse("plot", report.refused[0].summary)
