"""The options of what is rewritten or sharded ahead of time: nothing is lowered there."""

from typing import Any

from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.options import LOWERING_OPTIONS, LadderConfig
from ladderize.errors import Blocker, LadderError


def aot_config(checkpoint: LadderEntry | None = None, /, **options: Any) -> LadderConfig:
    """The configuration of what is sharded ahead of time: the options of lowering come later.

    Args:
        checkpoint: what the model's config.json says.
        options: of `LadderConfig`.

    Raises:
        LadderError: as `LadderConfig`, or because an option of lowering is among them.
    """
    surplus = [Blocker(f"{name}=") for name in LOWERING_OPTIONS if name in options]
    if surplus:
        cure = 'torch.compile(shard, backend="ladderize", options={…}) takes them'
        raise LadderError("Nothing is lowered ahead of time:", surplus, cure)
    return LadderConfig.from_options(options, checkpoint=checkpoint)
