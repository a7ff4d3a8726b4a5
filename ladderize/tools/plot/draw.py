"""`draw`: a report and a timeline to a file, whose name says what it is."""

from pathlib import Path

from ladderize.errors import LadderError
from ladderize.report.files import refuse_file, write_file
from ladderize.report.report import Report
from ladderize.tools.plot.page import page
from ladderize.tools.plot.picture import png, svg
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
    """Draw what was found in a model: its blocks and a step of it, before and after.

    Args:
        report: of `ladderize.explain` or `ladderize.last_report`.
        out: a new file. `.html` is a page that needs nothing else, `.svg` and `.png` a picture.
        timeline: of `predict` or `measure`; None: `predict(report)`.
        title: what stands above it, the model's name for example.
        theme: of a picture, "light" or "dark"; a page has both.
        force: replace `out` if it is there.

    Returns:
        The path that was written.

    Raises:
        LadderError: `out` is there already or has another ending, or a PNG cannot be made here.

    Example:
        >>> report = ladderize.explain(model, input_ids)
        >>> draw(report, "plot.html", predict(report, hardware_of("h100x4-nvlink")))
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise LadderError(f"{out} is to be what? Its name must end in {', '.join(SUFFIXES)}.")
    refuse_file(out, force)
    timeline = predict(report) if timeline is None else timeline
    if out.suffix.lower() == ".html":
        write_file(out, page(report, timeline, title), force)
        return out
    picture = svg(report, timeline, title, theme)
    write_file(out, png(picture) if out.suffix.lower() == ".png" else picture, force)
    return out
