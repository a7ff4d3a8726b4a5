"""The options of `rewrite` and `parallelize`, which do not lower the graph."""

from typing import Any

from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.options import LOWERING_OPTIONS, LadderConfig
from ladderize.errors import Blocker, LadderError


def aot_config(checkpoint: LadderEntry | None = None, /, **options: Any) -> LadderConfig:
    """The configuration of a program rewritten or sharded ahead of time.

    Args:
        checkpoint: ladder entry of the model's config.json.
        options: fields of `LadderConfig`, except those of the lowering.

    Raises:
        LadderError: an option is invalid, or belongs to the lowering.
    """
    surplus = [Blocker(f"{name}=") for name in LOWERING_OPTIONS if name in options]
    if surplus:
        cure = 'torch.compile(shard, backend="ladderize", options={…}) takes them'
        raise LadderError("Nothing is lowered ahead of time:", surplus, cure)
    return LadderConfig.from_options(options, checkpoint=checkpoint)
