"""Which layer a block belongs to: the index of the module list that holds it.

layer       None     0                   0              1
adds in     encoder  encoder.layers.0    …layers.0      encoder.layers.1
            └ prologue: in no layer, ahead of the first one
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from ladderize.errors import module_path
from ladderize.streams.block import Block

Path = tuple[str, ...]


def layer_indices(blocks: Sequence[Block]) -> list[int | None]:
    """For each block of a chain the index of its layer; None where no module list holds it.

    A path may hold several indices (`block.3.layer.1` in T5: layer list and sublayer list). Of
    those that never fall along the chain the one that takes the most values in one list is the
    layer, the outermost of equals. The path is that of the module that adds; where those name no
    list (`x = x + layer(x)` in the loop of the model itself), that of the branch. Layers that
    share their modules (ALBERT) are counted: each time the same modules come round again, a layer
    begins. The list of one that a block ahead of all others is in is not that of the layers.
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
    # One number of each list may be that of a list inside of a branch.
    is_numbered = of_adds.indices[0] is not None or of_branches.most_of_a_list < 2
    return of_adds.indices if is_numbered else of_branches.layers()


def count_prologue(blocks: Sequence[Block], layers: Sequence[int | None]) -> int:
    """How many blocks of a chain come before its first layer and are known to be in none."""
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
    """How often what stands at each place has been seen as a whole before: 0 0 1 1 2 2.

    What comes once, ahead of what comes again, belongs to no round.
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
    """The indices at one level of the paths, and the lists that they are in."""

    indices: list[int | None]
    lists: list[Path]

    @property
    def sizes(self) -> dict[Path, int]:
        """How many distinct indices each list takes."""
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
        """The indices, without those of lists of one ahead of the first list of more."""
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
