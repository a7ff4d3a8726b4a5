"""The layer of a block: its index in the module list that holds it.

layer       None     0                   0              1
adds in     encoder  encoder.layers.0    …layers.0      encoder.layers.1
            └ prologue: in no layer, ahead of the first
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from ladderize.errors import module_path
from ladderize.streams.block import Block

Path = tuple[str, ...]


def layer_indices(blocks: Sequence[Block]) -> list[int | None]:
    """For each block of a chain, the index of its layer; None if no module list holds it.

    A path may have several indices (`block.3.layer.1` in T5: layer list and sublayer list). The
    layer is the index that never decreases along the chain and has the most distinct values in one
    list; the outermost in case of ties. The path is that of the module that adds. If these paths
    contain no list (`x = x + layer(x)` in the model's own loop), it is the path of the branch.
    Layers that share modules (ALBERT) are counted: a layer begins each time the modules repeat. A
    list with one entry, ahead of all other blocks, is not the layer list.
    """
    adds = [_path(block.add) for block in blocks]
    branches = [_branch_path(block) for block in blocks]
    of_adds = _best_numbering(adds)
    if len(set(of_adds.indices)) > 1:
        return of_adds.layers()
    rounds = _rounds([add + branch for add, branch in zip(adds, branches, strict=True)])
    if rounds[-1]:
        return rounds
    of_branches = _best_numbering(branches)
    # A single index per list may belong to a list inside a branch.
    is_numbered = of_adds.indices[0] is not None or of_branches.most_of_a_list < 2
    return of_adds.indices if is_numbered else of_branches.layers()


def count_prologue(blocks: Sequence[Block], layers: Sequence[int | None]) -> int:
    """Number of blocks of a chain that come before its first layer and are known to be in none."""
    for count, (block, layer) in enumerate(zip(blocks, layers, strict=True)):
        if layer is not None:
            return count
        if not any(_path(block.add) + _branch_path(block)):
            break  # the trace kept no path
    return 0


def _path(node: Node) -> Path:
    return tuple(module_path(node).split("."))


def _branch_path(block: Block) -> Path:
    return next((_path(node) for node in reversed(block.branch) if module_path(node)), ("",))


def _rounds(places: Sequence[Path]) -> list[int | None]:
    """For each place, how often the sequence of places has repeated before it: 0 0 1 1 2 2.

    Places that occur only once, ahead of the first repeated place, belong to no round.
    """
    if not all(map(any, places)):
        return [None] * len(places)
    times = Counter(places)
    ahead = next((i for i, place in enumerate(places) if times[place] > 1), 0)
    rounds: list[int | None] = [None] * ahead
    seen: set[Path] = set()
    number = 0
    for place in places[ahead:]:
        if place in seen:
            seen.clear()
            number += 1
        seen.add(place)
        rounds.append(number)
    return rounds


@dataclass(frozen=True)
class _Numbering:
    """The indices at one level of the paths, and the lists that contain them."""

    indices: list[int | None]
    lists: list[Path]

    @property
    def sizes(self) -> dict[Path, int]:
        """Number of distinct indices in each list."""
        pairs = set(zip(self.lists, self.indices, strict=True))
        return Counter(path for path, index in pairs if index is not None)

    @property
    def most_of_a_list(self) -> int:
        return max(self.sizes.values(), default=0)

    @property
    def strength(self) -> int:
        known = [index for index in self.indices if index is not None]
        return self.most_of_a_list if known == sorted(known) else min(len(known), 1)

    def layers(self) -> list[int | None]:
        """The indices, but None for single-entry lists ahead of the first longer list."""
        sizes, most = self.sizes, self.most_of_a_list
        is_layer = [sizes.get(path, 0) > 1 or most < 2 for path in self.lists]
        ahead = is_layer.index(True)
        return [None] * ahead + self.indices[ahead:]


def _best_numbering(paths: Sequence[Path]) -> _Numbering:
    best = _Numbering([None] * len(paths), list(paths))
    for level in range(max(map(len, paths), default=0)):
        indices = [_index_at(path, level) for path in paths]
        numbering = _Numbering(indices, [path[:level] for path in paths])
        if numbering.strength > best.strength:
            best = numbering
    return best


def _index_at(path: Path, level: int) -> int | None:
    return int(path[level]) if level < len(path) and path[level].isdecimal() else None
