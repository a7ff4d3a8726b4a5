"""The checkpoints of a run, each complete or removed.

RUN/checkpoint-20    complete if it has trainer_state.json, which is written last
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
    """The complete checkpoint of the latest step; None if there is none."""
    found = [each for each in run.glob("checkpoint-*") if _NAME.fullmatch(each.name)]
    return max(filter(_is_whole, found), key=_step_of, default=None)


def remove_partial(run: Path) -> None:
    """Remove incomplete checkpoints of a killed run."""
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
    """Write the checkpoint `folder` in the body; if that fails, remove it.

    Raises:
        LadderError: it cannot be written, for example because the disk is full.
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
            cure="free some space; the same command resumes",
        ) from error


def told_last(run: Path) -> str:
    """A sentence that names the last complete checkpoint."""
    last = last_checkpoint(run)
    return "There is no checkpoint yet." if last is None else f"The last checkpoint is {last}."


def _is_of_writing(error: BaseException) -> bool:
    """Whether writing failed. torch.save raises plain RuntimeErrors from its archive writer."""
    if isinstance(error, OSError | SafetensorError):
        return True
    is_torch = isinstance(error, RuntimeError)
    return is_torch and any(text in str(error) for text in ("StreamWriter", "unexpected pos"))
