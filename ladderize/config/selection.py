"""The options `layers=` and `blocks=`: the part of a stream to convert.

"all"   "16:32"   "last:16"   "last:50%"   [0, 3, 4]   "plan.json:50%"
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ladderize.config.block_plan import BlockPlan, read_block_plan
from ladderize.errors import LadderError

FORMS = '"all", "16:32", "last:16", "last:50%", a list of indices, or "plan.json:50%"'


@dataclass(frozen=True)
class Selection:
    """A parsed selection; `resolve` turns it into indices once the number of items is known.

    Two selections are equal if they choose the same items for every number of items.

    Attributes:
        plan: plan in the named file. It counts blocks, even for `layers=`.
    """

    text: str = field(compare=False)
    start: int | None = None
    stop: int | None = None
    last: int | None = None
    last_percent: float | None = None
    indices: tuple[int, ...] | None = None
    plan: BlockPlan | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, value: str | int | Sequence[int]) -> "Selection":
        """Parse one of the six forms. Raises `ValueError` naming the forms otherwise."""
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if isinstance(value, str):
            return cls._parse_text(value.strip())
        if isinstance(value, Sequence) and value and all(map(_is_index, value)):
            return cls(str(list(value)), indices=tuple(sorted({int(i) for i in value})))
        raise ValueError(f"{value!r} is not {FORMS}")

    @classmethod
    def _parse_text(cls, text: str) -> "Selection":
        if text == "all":
            return cls(text, start=0)
        if match := re.fullmatch(r"(\d*):(\d*)", text):
            start, stop = match.groups()
            return cls(text, start=int(start or 0), stop=int(stop) if stop else None)
        if match := re.fullmatch(r"last:(\d+)", text):
            return cls(text, last=int(match[1]))
        if (match := re.fullmatch(r"last:(\d+(?:\.\d+)?)%", text)) and float(match[1]) <= 100:
            return cls(text, last_percent=float(match[1]))
        if match := re.fullmatch(r"\[?\s*(\d+(?:\s*,\s*\d+)*)\s*\]?", text):  # a list, as text
            return cls.parse([int(part) for part in match[1].split(",")])
        if (match := re.fullmatch(r"(.+\.json):(\d+(?:\.\d+)?)%", text)) and float(match[2]) <= 100:
            return cls._of_plan(text, Path(match[1]), float(match[2]) / 100)
        raise ValueError(f"{text!r} is not {FORMS}")

    @classmethod
    def _of_plan(cls, text: str, path: Path, share: float) -> "Selection":
        try:
            plan = read_block_plan(path)
            return cls(text, indices=tuple(sorted(plan.best(share).blocks)), plan=plan)
        except LadderError as error:
            raise ValueError(" ".join(f"{text!r}: {error}".split())) from None
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None

    @property
    def counts_from_the_end(self) -> bool:
        """Whether the first chosen item depends on the number of items."""
        return self.last is not None or self.last_percent is not None

    def is_same(self, other: "Selection") -> bool | None:
        """Whether both choose the same items; None if it depends on the number of items."""
        if self == other:
            return True
        if self.last and other.last:
            return False
        here, there = self._fixed(), other._fixed()
        return None if here is None or there is None else here == there

    def _fixed(self) -> frozenset[int] | None:
        """The chosen indices; None if they depend on the number of items."""
        if self.indices is not None:
            return frozenset(self.indices)
        return None if self.stop is None else frozenset(range(self.start or 0, self.stop))

    def resolve(self, count: int) -> frozenset[int]:
        """The chosen indices out of `range(count)`.

        A percentage is rounded to the nearest whole item, halves up. Raises `ValueError` if the
        selection is empty or out of range.
        """
        if self.plan is not None and count != len(self.plan.blocks):
            raise ValueError(
                f"{self.text!r} is of a model with {len(self.plan.blocks)} blocks "
                f"({self.plan.model}); this one has {count}"
            )
        chosen = self._candidates(count)
        if not chosen:
            raise ValueError(f"{self.text!r} selects none of {count}")
        outside = sorted(i for i in chosen if not 0 <= i < count)
        if outside:
            shown = ", ".join(map(str, outside[:8])) + (" …" if len(outside) > 8 else "")
            raise ValueError(f"{self.text!r} selects {shown}; there are 0 to {count - 1}")
        return frozenset(chosen)

    def _candidates(self, count: int) -> list[int]:
        if self.indices is not None:
            return list(self.indices)
        if self.last is not None:
            return list(range(count - self.last, count))
        if self.last_percent is not None:
            return list(range(count - int(count * self.last_percent / 100 + 0.5), count))
        return list(range(self.start or 0, count if self.stop is None else self.stop))


def ranges_of(indices: Iterable[int]) -> str:
    """Ascending indices as text, with runs abbreviated: "0, 4-7"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
