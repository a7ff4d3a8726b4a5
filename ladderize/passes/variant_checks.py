"""Check the requirements of a variant on the model and the ranks.

variant="desync:2"    several ranks, each with its own stream
variant="parallel"    layers of two or more branches
"""

import warnings
from collections.abc import Sequence

from ladderize.config.options import LadderConfig
from ladderize.config.residual_form import PARALLEL
from ladderize.errors import Blocker, LadderError, LadderWarning
from ladderize.streams.block import Stream
from ladderize.streams.choose import by_default
from ladderize.streams.layer_mates import layer_sources, normed_sums


def refuse_desync_alone(config: LadderConfig, num_ranks: int) -> None:
    """Raise `LadderError` if a desync residual is asked for on one device."""
    if config.period and num_ranks < 2:
        raise LadderError(
            f"variant={config.variant!r} needs several ranks, each with its own stream:",
            cure="set mesh=, or --tp on the command line; a single device has one stream",
        )


def check_layers(streams: Sequence[Stream], config: LadderConfig) -> None:
    """Warn if `variant="parallel"` changes nothing because the layers have one branch each.

    Raises:
        LadderError: the layers have several branches, but an op is between all their sums.
    """
    blocks = [block for stream in streams for block in stream.blocks]
    is_found = any(layer_sources(stream.blocks, by_default(stream)) for stream in streams)
    if config.variant != PARALLEL or is_found or not blocks:
        return
    between = [block for stream in streams for block in normed_sums(stream.blocks)]
    if between:
        raise LadderError(
            "No two branches of a layer are summands of one sum:",
            [
                Blocker.at(
                    b.add, f"an op lies between the sums of blocks {b.index - 1} and {b.index}"
                )
                for b in between
            ],
            "use variant='ladder', which also converts post-norm models",
        )
    warning = LadderWarning(
        "The layers of this model have one branch each and stay unchanged:",
        [Blocker.at(b.add, f"block {b.index} is the only one in its layer") for b in blocks],
    )
    warnings.warn(warning, stacklevel=2)
