"""Fold lines about layers kept whole for the same reason into one, with summed costs.

layers.0.mlp.gate.weight: why (… at /usr/lib/site-packages/x/y.py:3); 8 bytes and 64 FLOPs …
layers.1.mlp.gate.weight: why (… at /usr/lib/site-packages/x/y.py:3); 8 bytes and 64 FLOPs …
──
layers.{0-1}.mlp.gate.weight: why (… at x/y.py:3); 16 bytes and 128 FLOPs …
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ladderize.errors import short_paths
from ladderize.sharding.undivided import Undivided, cost_of

_LAYER = re.compile(r"\b(?:[A-Za-z_]\w*\.)+?(\d+)\.")  # the first module list


@dataclass
class _Fold:
    """Lines that differ only in the layer index."""

    layers: list[int] = field(default_factory=list)
    num_bytes: int = 0
    flops: int = 0


def folded_lines(whole: Iterable[Undivided]) -> list[str]:
    """One line for each reason, in the order of first occurrence."""
    folds = _folds((each.describe(), each.num_bytes, each.flops) for each in whole)
    return [
        f"{_named(text, fold)}; {cost_of(fold.num_bytes, fold.flops)}"
        for text, fold in folds.items()
    ]


def reasons(whole: Iterable[Undivided]) -> list[str]:
    """`folded_lines` without costs, which depend on the prompt length."""
    return folded(str(reason) for undivided in whole for reason in undivided.reasons)


def folded(texts: Iterable[str]) -> list[str]:
    """`texts`, with those that differ only in the layer index folded into one."""
    return [_named(text, fold) for text, fold in _folds((text, 0, 0) for text in texts).items()]


def _folds(costs: Iterable[tuple[str, int, int]]) -> dict[str, _Fold]:
    """The texts without layer indices, with the summed bytes and FLOPs of equal texts."""
    folds: dict[str, _Fold] = {}
    for described, num_bytes, flops in costs:
        text, layer = _without_layer(_short(described))
        fold = folds.setdefault(text, _Fold())
        fold.layers += [] if layer is None else [layer]
        fold.num_bytes += num_bytes
        fold.flops += flops
    return folds


def _named(text: str, fold: _Fold) -> str:
    return text.replace("{}", _spell(fold.layers)) if fold.layers else text


def _short(text: str) -> str:
    return short_paths(text).replace(f"{Path.cwd()}/", "")


def _without_layer(text: str) -> tuple[str, int | None]:
    """`layers.3.mlp of layers.3` -> `layers.{}.mlp of layers.{}`, 3"""
    found = _LAYER.search(text)
    if found is None:
        return text, None
    head = text[found.start() : found.start(1)]
    number = re.compile(rf"{re.escape(head)}{found[1]}(?=\.|\b)")
    return number.sub(lambda _: f"{head}{{}}", text), int(found[1])


def _spell(layers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "{0-2,5}"; [3] -> "3"."""
    if len(set(layers)) == 1:
        return str(layers[0])
    runs = itertools.groupby(enumerate(sorted(set(layers))), lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return "{" + ",".join(f"{a}-{b}" if a < b else str(a) for a, b in ends) + "}"
