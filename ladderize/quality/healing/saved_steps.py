"""The checkpoints of a run: whole, or not there.

RUN/checkpoint-20    trainer_state.json is written last: with it a checkpoint is whole
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ladderize.errors import LadderError

_STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the latest step that was written as a whole; None if there is none."""
    found = [each for each in run.glob("checkpoint-*") if _NAME.fullmatch(each.name)]
    return max(filter(_is_whole, found), key=_step_of, default=None)


def remove_partial(run: Path) -> None:
    """Remove the checkpoints that a killed run has left unfinished."""
    for folder in run.glob("checkpoint-*"):
        if _NAME.fullmatch(folder.name) and not _is_whole(folder):
            shutil.rmtree(folder)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _is_whole(folder: Path) -> bool:
    try:
        json.loads((folder / _STATE).read_bytes())
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def whole_checkpoint(folder: Path) -> Iterator[None]:
    """The block writes the checkpoint `folder`; if it fails, nothing of it stays.

    Raises:
        LadderError: it cannot be written, as on a full disk.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not _is_of_writing(error):
            raise
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise LadderError(
            f"{folder} cannot be written: {why}. {told_last(folder.parent)}",
            cure="make room; the same command resumes",
        ) from error


def told_last(run: Path) -> str:
    """A sentence that names the last whole checkpoint."""
    last = last_checkpoint(run)
    return "There is no checkpoint yet." if last is None else f"The last checkpoint is {last}."


def _is_of_writing(error: BaseException) -> bool:
    """torch.save raises plain RuntimeErrors, of its writer or of the archive's positions."""
    if isinstance(error, OSError | SafetensorError):
        return True
    is_torch = isinstance(error, RuntimeError)
    return is_torch and any(text in str(error) for text in ("StreamWriter", "unexpected pos"))
