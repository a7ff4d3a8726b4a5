"""Track the ladder that each model was converted to, until it is saved.

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
    """The conversion of a model.

    Attributes:
        config: options.
        blocks: numbers of the blocks that the latest compilation converted, as `blocks=` counts
            them. None before the first compilation; empty if it compiled the standard model.
    """

    config: LadderConfig
    blocks: tuple[int, ...] | None = None


_conversions: WeakKeyDictionary[nn.Module, ConversionNote] = WeakKeyDictionary()
"""The conversion of each model; copies of a model are different models."""


def note_request(module: nn.Module, config: LadderConfig) -> None:
    """Note that `module` will become this ladder when it is called."""
    _conversions[module] = ConversionNote(config)


def note_compilation(
    module: nn.Module | None, config: LadderConfig, blocks: tuple[int, ...]
) -> None:
    """Note that `module` and the modules that it wraps were compiled.

    Args:
        module: compiled module; None for a function, for which nothing is noted.
        config: options.
        blocks: numbers of the converted blocks.
    """
    if module is not None:
        for each in (module, *find_delegates(module)):
            _conversions[each] = ConversionNote(config, blocks)


def forget_conversion(module: nn.Module) -> None:
    """Note that `module` is a standard model again."""
    _conversions.pop(module, None)


def entry_to_write(model: nn.Module) -> LadderEntry | None:
    """The entry for the config.json of `model`; None if it is not a ladder.

    An existing entry of its configuration is kept. For an encoder-decoder model, the entry has the
    options as given: its encoder is also compiled separately, with other block numbers. A desync
    residual depends on the number of ranks and has no entry.
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
