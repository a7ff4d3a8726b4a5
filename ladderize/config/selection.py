"""`layers=` and `blocks=`: which part of a stream is converted.

"all"   "16:32"   "last:16"   "last:50%"   [0, 3, 4]
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FORMS = '"all", "16:32", "last:16", "last:50%" or a list of indices'


@dataclass(frozen=True)
class Selection:
    """A parsed selection; `resolve` turns it into indices once the number of items is known.

    Two of them are equal if they choose the same items of any number of them.
    """

    text: str = field(compare=False)
    start: int | None = None
    stop: int | None = None
    last: int | None = None
    last_percent: float | None = None
    indices: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, value: str | int | Sequence[int]) -> "Selection":
        """Parse one of the five forms. Raises `ValueError` naming the forms otherwise."""
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
        raise ValueError(f"{text!r} is not {FORMS}")

    @property
    def counts_from_the_end(self) -> bool:
        """Whether the number of items decides where the selection begins."""
        return self.last is not None or self.last_percent is not None

    def is_same(self, other: "Selection") -> bool | None:
        """Whether both choose the same items; None if the number of items decides."""
        if self == other:
            return True
        if self.last and other.last:
            return False
        here, there = self._fixed(), other._fixed()
        return None if here is None or there is None else here == there

    def _fixed(self) -> frozenset[int] | None:
        """The chosen indices, if the number of items does not decide on them."""
        if self.indices is not None:
            return frozenset(self.indices)
        return None if self.stop is None else frozenset(range(self.start or 0, self.stop))

    def resolve(self, count: int) -> frozenset[int]:
        """The chosen indices out of `range(count)`.

        A percentage is rounded to the nearest whole item, halves up. Raises `ValueError` when the
        selection is empty or reaches outside the range.
        """
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
    """ "0, 4-7": ascending indices, runs of them by their ends."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
