"""Write matplotlib figures to files."""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from ladderize.errors import LadderError
from ladderize.report.files import refuse_file, write_file

KINDS = (".png", ".svg", ".pdf")


def refuse_picture(path: Path, force: bool) -> None:
    """Raise `LadderError` if no picture can be drawn to `path`."""
    if path.suffix not in KINDS:
        raise LadderError(f"{path} is not a picture.", cure=f"use one of {', '.join(KINDS)}")
    if find_spec("matplotlib") is None:
        raise LadderError("Drawing needs matplotlib.", cure="pip install 'ladderize[plot]'")
    refuse_file(path, force)


def save_picture(figure: Any, path: Path, force: bool = False) -> None:
    """Write a figure of matplotlib to `path`, in the format of its suffix."""
    made = BytesIO()
    figure.savefig(made, format=path.suffix[1:], dpi=144)
    write_file(path, made.getvalue(), force)
