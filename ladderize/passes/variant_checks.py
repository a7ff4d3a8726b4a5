"""What a variant needs of the model and of the ranks, and that a model may have it already.

variant="desync:2"    ranks, each of which has a stream of its own
variant="parallel"    a layer of two branches or more
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
    """Raise `LadderError` where one device is asked for streams of several ranks."""
    if config.period and num_ranks < 2:
        raise LadderError(
            f"variant={config.variant!r} needs ranks, each of which has a stream of its own:",
            cure="give mesh=, on the command line --tp; a single device has one stream",
        )


def check_layers(streams: Sequence[Stream], config: LadderConfig) -> None:
    """Tell where `variant="parallel"` changes nothing.

    Raises:
        LadderError: the layers have several branches, and the sums of all are normalized.
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
            "variant='ladder' needs no such sum, and converts post-norm models too",
        )
    warning = LadderWarning(
        "The layers of this model have one branch each, and stay as they are:",
        [Blocker.at(b.add, f"block {b.index} is all of its layer") for b in blocks],
    )
    warnings.warn(warning, stacklevel=2)
