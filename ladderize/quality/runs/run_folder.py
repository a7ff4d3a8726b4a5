"""OUT while a run is under way, and when it is done.

under way   OUT/checkpoints/run.json          what decides the run, and what was measured before it
            OUT/checkpoints/checkpoint-20     of transformers' Trainer
            OUT/self_generated.jsonl
done        OUT/heal.json, model, tokenizer, self_generated.jsonl      all at once
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladderize.compat.json_files import read_json
from ladderize.errors import Blocker, LadderError
from ladderize.quality.healing.saved_steps import last_checkpoint, remove_partial
from ladderize.quality.runs import self_generated
from ladderize.report.files import write_file

RESULT = "heal.json"


class RunFolder:
    """Of one run. Nothing is written before it begins; only the first of several ranks begins it.

    Args:
        out: the folder.
        decides: what the run depends on, as JSON has it.
        force: replace what is finished, or was begun with other options.

    Raises:
        LadderError: it is finished, was begun with other options, or is somebody else's.
    """

    def __init__(self, out: Path, decides: Mapping[str, Any], force: bool = False) -> None:
        self.out, self.checkpoints, self._force = out, out / "checkpoints", force
        self._path, self._decides = self.checkpoints / "run.json", dict(decides)
        if self._path.is_file():
            if self._has_begun():
                self._refuse(self._differing())
        elif out.exists() and not _is_empty(out):
            self._refuse_written()
        elif not out.absolute().parent.is_dir():
            raise LadderError(f"{out.absolute().parent} is no directory.", cure="make it first")

    def begin(self) -> None:
        """Go on with the run that is there, or begin anew."""
        if not self._path.is_file() or self._differing():
            (self.out / self_generated.NAME).unlink(missing_ok=True)
            self._begin_anew()
        remove_partial(self.checkpoints)

    def settle_text(self, digest: str) -> None:
        """Note which text the run is of.

        Raises:
            LadderError: it was begun with another one.
        """
        if self.noted("text") not in (None, digest):
            self._refuse([Blocker("the text is not the one that it was begun with")])
            self._begin_anew()
        self.note("text", digest)

    def _begin_anew(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.checkpoints.mkdir(parents=True)
        self._write({"decides": self._decides})

    def _has_begun(self) -> bool:
        """Whether something would be lost."""
        has_text = (self.out / self_generated.NAME).is_file()
        return has_text or last_checkpoint(self.checkpoints) is not None

    def _refuse_written(self) -> None:
        if not (self.out / RESULT).is_file():
            raise LadderError(
                f"{self.out} is a directory that ladderize did not write: it is not overwritten.",
                cure="name another place",
            )
        if not self._force:
            raise LadderError(f"{self.out} exists already.", cure="overwrite it with --force")

    def _refuse(self, differing: list[Blocker]) -> None:
        if differing and not self._force:
            raise LadderError(
                f"{self.out} holds a run that was begun with other options:",
                differing,
                "give these options, name another --out, or begin anew with --force",
            )

    def _differing(self) -> list[Blocker]:
        begun = self._read()["decides"]
        return [
            Blocker(f"{name}={value!r} is asked for, and it was begun with {begun.get(name)!r}")
            for name, value in self._decides.items()
            if value != begun.get(name)
        ]

    def noted(self, name: str) -> Any:
        """What `note` was called with; None if it was not."""
        return self._read().get(name)

    def note(self, name: str, value: Any) -> None:
        """Remember something for when the run is resumed."""
        self._write({**self._read(), name: value})

    def _read(self) -> Any:
        return read_json(self._path, "record of a run", "begin anew with --force")

    def _write(self, data: Mapping[str, Any]) -> None:
        write_file(self._path, json.dumps(data, indent=1), force=True)


def _is_empty(out: Path) -> bool:
    """But for what a run that was killed as it began may have left."""
    ours = ("checkpoints", self_generated.NAME)
    return out.is_dir() and all(path.name in ours for path in out.iterdir())
