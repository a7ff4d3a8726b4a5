"""`draw`: show what a ladder does to a model, as a page or a picture, depending on the suffix.

Report, Timeline ── draw ──┬── sheet.py: SVG and PNG by matplotlib ── .svg, .png
                           │      ├ block_graph.py (columns.py)
                           │      └ step_lanes.py
                           └── page.py (page.html.jinja) ──────────── .html
"""

import importlib.util
from pathlib import Path

from ladderize.errors import LadderError
from ladderize.report.files import refuse_file, write_file
from ladderize.report.report import Report
from ladderize.tools.plot.palettes import PALETTES
from ladderize.tools.predict.timeline.predicted import predict
from ladderize.tools.predict.timeline.steps import Timeline

SUFFIXES = (".html", ".svg", ".png")


def draw(
    report: Report,
    out: str | Path,
    timeline: Timeline | None = None,
    *,
    title: str = "Standard and ladder",
    theme: str = "light",
    force: bool = False,
) -> Path:
    """Draw the blocks of a model and one step of it, before and after the rewrite.

    Args:
        report: report from `ladderize.explain` or `ladderize.last_report`.
        out: path of the file; `.html` is a self-contained page, `.svg` and `.png` are pictures.
        timeline: timeline from `predict` or `measure`; `predict(report)` if None.
        title: title of the page or picture, such as the name of the model.
        theme: "light" or "dark" for a picture; a page follows the reader's system.
        force: replace `out` if it exists.

    Returns:
        The path of the file.

    Raises:
        LadderError: matplotlib is not installed; `out` exists or has another suffix.

    Example:
        >>> report = ladderize.explain(model, input_ids)
        >>> draw(report, "plot.html", predict(report, hardware_of("h100x4-nvlink")))
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise LadderError(f"Cannot infer the format of {out}: use .html, .svg or .png.")
    if theme not in PALETTES:
        raise LadderError(f"There is no theme {theme!r}: use {' or '.join(PALETTES)}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise LadderError("Drawing needs matplotlib.", cure="pip install 'ladderize[plot]'")
    refuse_file(out, force)
    from ladderize.tools.plot import page, sheet  # imported here, because they import matplotlib

    timeline = predict(report) if timeline is None else timeline
    if out.suffix.lower() == ".html":
        write_file(out, page.page(report, timeline, title), force)
    else:
        drawings = [*sheet.picture(report, timeline, title)]
        write_file(out, sheet.render(drawings, PALETTES[theme], out.suffix.lower()[1:]), force)
    return out
