"""Which layer a block belongs to: the index of the module list that holds it."""

from collections.abc import Sequence

from torch.fx import Node

from ladderize.errors import module_path
from ladderize.streams.block import Block


def layer_indices(blocks: Sequence[Block]) -> list[int | None]:
    """For each block of a chain the index of its layer; None where no module list holds it.

    A path may hold several indices (`block.3.layer.1` in T5: layer list and sublayer list). Of
    those that never fall along the chain the one that takes the most values is the layer, the
    outermost of equals. The path
    is that of the module that adds; where those name no list (`x = x + layer(x)` in the loop of
    the model itself), that of the branch. Layers that share their modules (ALBERT) are counted:
    each time the same modules come round again, a layer begins.
    """
    adds = [module_path(block.add).split(".") for block in blocks]
    branches = [_branch_path(block) for block in blocks]
    indices = _indices(adds)
    if len(set(indices)) > 1:
        return indices
    rounds = _rounds([(*add, *branch) for add, branch in zip(adds, branches, strict=True)])
    if rounds[-1]:
        return rounds
    by_branch = _indices(branches)  # one index throughout may be a list inside of the branch
    return by_branch if indices[0] is None and len(set(by_branch)) > 1 else indices


def _branch_path(block: Block) -> list[str]:
    paths: list[Node] = [node for node in reversed(block.branch) if module_path(node)]
    return module_path(paths[0]).split(".") if paths else [""]


def _rounds(places: Sequence[tuple[str, ...]]) -> list[int | None]:
    """How often what stands at each place has been seen as a whole before: 0 0 1 1 2 2."""
    rounds: list[int | None] = []
    seen: set[tuple[str, ...]] = set()
    number = 0
    for place in places:
        if not any(place):
            return [None] * len(places)
        if place in seen:
            seen.clear()
            number += 1
        seen.add(place)
        rounds.append(number)
    return rounds


def _indices(paths: Sequence[Sequence[str]]) -> list[int | None]:
    best: list[int | None] = [None] * len(paths)
    most = 0
    for level in range(max(map(len, paths), default=0)):
        indices = [_index_at(path, level) for path in paths]
        known = [index for index in indices if index is not None]
        distinct = len(set(known)) if known == sorted(known) else min(len(known), 1)
        if distinct > most:
            best, most = indices, distinct
    return best


def _index_at(path: Sequence[str], level: int) -> int | None:
    return int(path[level]) if level < len(path) and path[level].isdecimal() else None
