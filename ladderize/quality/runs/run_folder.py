"""The folder OUT during and after a run.

during      OUT/checkpoints/run.json          options of the run, and metrics before training
            OUT/checkpoints/checkpoint-20     of transformers' Trainer
            OUT/self_generated.jsonl
after       OUT/heal.json, model, tokenizer, self_generated.jsonl      written atomically
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
    """The folder of one run. Nothing is written before `begin`, which only the first rank calls.

    Args:
        out: path of the folder.
        decides: options that the run depends on, as JSON data.
        force: replace a finished run, or one that was started with other options.

    Raises:
        LadderError: the run is finished or was started with other options, or the folder was not
            written by ladderize.
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
            raise LadderError(
                f"{out.absolute().parent} is not a directory.", cure="create it first"
            )

    def begin(self) -> None:
        """Continue the existing run, or start a new one."""
        if not self._path.is_file() or self._differing():
            (self.out / self_generated.NAME).unlink(missing_ok=True)
            self._begin_anew()
        remove_partial(self.checkpoints)

    def settle_text(self, digest: str) -> None:
        """Record the text of the run.

        Raises:
            LadderError: the run was started with another text.
        """
        if self.noted("text") not in (None, digest):
            self._refuse([Blocker("the text differs from the one that it was started with")])
            self._begin_anew()
        self.note("text", digest)

    def _begin_anew(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.checkpoints.mkdir(parents=True)
        self._write({"decides": self._decides})

    def _has_begun(self) -> bool:
        """Whether there is anything to lose."""
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
                f"{self.out} holds a run that was started with other options:",
                differing,
                "use the same options, name another --out, or start over with --force",
            )

    def _differing(self) -> list[Blocker]:
        begun = self._read()["decides"]
        return [
            Blocker(f"{name}={value!r} is given, but it was started with {begun.get(name)!r}")
            for name, value in self._decides.items()
            if value != begun.get(name)
        ]

    def noted(self, name: str) -> Any:
        """The value that `note` recorded, or None."""
        return self._read().get(name)

    def note(self, name: str, value: Any) -> None:
        """Record a value for a resumed run."""
        self._write({**self._read(), name: value})

    def _read(self) -> Any:
        return read_json(self._path, "record of a run", "start over with --force")

    def _write(self, data: Mapping[str, Any]) -> None:
        write_file(self._path, json.dumps(data, indent=1), force=True)


def _is_empty(out: Path) -> bool:
    """Whether `out` is empty, apart from files of a run that was killed at its start."""
    ours = ("checkpoints", self_generated.NAME)
    return out.is_dir() and all(path.name in ours for path in out.iterdir())
