"""Which layer a block belongs to: the index of the module list that holds it."""

from collections.abc import Sequence

from torch.fx import Node

from ladderize.errors import module_path


def layer_indices(adds: Sequence[Node]) -> list[int | None]:
    """For each add of a chain the index of its layer; None where no module list holds it.

    A path may hold several indices (`block.3.layer.1` in T5: layer list and sublayer list). The
    one that takes the most values along the chain is the layer, the outermost of equals.
    """
    paths = [module_path(add).split(".") for add in adds]
    depth = max(map(len, paths), default=0)
    best: list[int | None] = [None] * len(paths)
    most = 0
    for level in range(depth):
        indices = [_index_at(path, level) for path in paths]
        distinct = len({index for index in indices if index is not None})
        if distinct > most:
            best, most = indices, distinct
    return best


def _index_at(path: Sequence[str], level: int) -> int | None:
    return int(path[level]) if level < len(path) and path[level].isdecimal() else None
