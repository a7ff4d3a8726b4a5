"""Which ladder each model was made, noted for the day when it is saved.

compile(model, blocks="last:50%")  ── note_request       blocks="last:50%"
its first call                     ── note_compilation   blocks=[4, 5, 6, 7]
model.save_pretrained(DIR)         ── entry_to_write
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.options import LadderConfig
from ladderize.frontends.checkpoints.own_entry import own_entry
from ladderize.frontends.delegates import find_delegates
from ladderize.frontends.generation import find_encoder


@dataclass(frozen=True)
class ConversionNote:
    """What became of a model.

    Attributes:
        config: the options.
        blocks: those that the latest compilation converted, as `blocks=` counts them; None before
            the first one. Empty: that one compiled the network as it is.
    """

    config: LadderConfig
    blocks: tuple[int, ...] | None = None


_conversions: WeakKeyDictionary[nn.Module, ConversionNote] = WeakKeyDictionary()
"""Of each model; copies of a model are others."""


def note_request(module: nn.Module, config: LadderConfig) -> None:
    """`module` is to become this ladder when it is called."""
    _conversions[module] = ConversionNote(config)


def note_compilation(
    module: nn.Module | None, config: LadderConfig, blocks: tuple[int, ...]
) -> None:
    """`module` was compiled, and with it what it wraps.

    Args:
        module: None for a function, of which nothing is noted.
        config: the options.
        blocks: that were converted.
    """
    if module is not None:
        for each in (module, *find_delegates(module)):
            _conversions[each] = ConversionNote(config, blocks)


def forget_conversion(module: nn.Module) -> None:
    """`module` is a standard network again."""
    _conversions.pop(module, None)


def entry_to_write(model: nn.Module) -> LadderEntry | None:
    """The entry that belongs into the config.json of `model`; None if it is not a ladder.

    What its configuration says stays. Of an encoder-decoder model the options are written as they
    were given: its encoder is compiled by itself too, and has other numbers of blocks. A desync
    residual, which depends on the number of ranks, is no entry.
    """
    if (own := own_entry(model)) is not None:
        return own
    noted = _conversions.get(model)
    if noted is None or not noted.config.staleness or noted.config.period or noted.blocks == ():
        return None
    config = noted.config
    reads = config.staleness, config.connectivity, config.routed, config.variant
    if noted.blocks is None or find_encoder(model) is not None:
        return LadderEntry(config.layers, config.blocks, *reads)
    return LadderEntry(None, noted.blocks, *reads)
