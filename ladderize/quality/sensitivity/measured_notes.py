"""Record measurements in a file of JSON lines, from which an interrupted search continues.

{"of": "LlamaForCausalLM …", …}         subject; the file is restarted if it differs
{"blocks": [3, 5], "kl": 0.1, "loss": 3.2}
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ladderize.errors import LadderError
from ladderize.quality.sensitivity.damage_meter import Damage, Ranks
from ladderize.quality.sensitivity.set_search import Blocks


class MeasuredNotes:
    """The damage of sets, in memory and, with a path, in a file.

    Each rank has one, with the contents of the first rank's file; only the first rank writes.
    """

    def __init__(self, path: Path | None, of: Mapping[str, Any], ranks: Ranks) -> None:
        """
        Args:
            path: path of the file; None writes nothing.
            of: subject of the measurements, as JSON data.
            ranks: ranks that measure together.

        Raises:
            LadderError: the file cannot be written.
        """
        self._path = path if ranks.is_first else None
        header = json.dumps({"of": of})
        self._found = ranks.of_first(self._read(header))
        self._write("w", [header, *(_line(*item) for item in self._found.items())])

    def _read(self, header: str) -> dict[Blocks, Damage]:
        if self._path is None or not self._path.is_file():
            return {}
        lines = self._path.read_text("utf-8", errors="replace").splitlines()
        if lines[:1] != [header]:
            return {}
        return dict(map(_parse, filter(_is_whole, lines[1:])))

    def get(self, blocks: Blocks) -> Damage | None:
        return self._found.get(blocks)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, sets: Sequence[Blocks], found: Sequence[Damage]) -> None:
        new = dict(zip(sets, found, strict=True))
        self._found |= new
        self._write("a", [_line(*item) for item in new.items()])

    def remove_file(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, mode: str, lines: Sequence[str]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            raise LadderError(
                f"{self._path} cannot be written: {error.strerror}.",
                cure="free some space; the same command then continues from the file",
            ) from None


def _line(blocks: Blocks, damage: Damage) -> str:
    return json.dumps({"blocks": sorted(blocks), "kl": damage.kl, "loss": damage.loss})


def _is_whole(line: str) -> bool:
    """Whether a line is complete; the last one of a killed process may not be."""
    return line.endswith("}")


def _parse(line: str) -> tuple[Blocks, Damage]:
    data = json.loads(line)
    return frozenset(data["blocks"]), Damage(data["kl"], data["loss"])
