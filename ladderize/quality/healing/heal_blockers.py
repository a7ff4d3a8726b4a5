"""Find reasons why a model cannot be healed."""

from collections.abc import Iterator
from typing import Any

from ladderize.errors import Blocker, LadderError
from ladderize.frontends.checkpoints.own_entry import own_entry
from ladderize.quality.healing.teacher import find_changed_adapters


def refuse_unhealable(model: Any, args: Any) -> None:
    """Raise `LadderError` if `HealingTrainer(model, args)` cannot work, listing all reasons."""
    blockers = [*find_changed_adapters(model), *_settings_in_the_way(model, args)]
    if blockers:
        raise LadderError("This model cannot be healed with these arguments:", blockers)


def _settings_in_the_way(model: Any, args: Any) -> Iterator[Blocker]:
    if (entry := own_entry(model)) is not None:
        yield Blocker(f"its weights are already those of a ladder: config.json has {entry}")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        yield Blocker("it is an encoder-decoder, not a causal language model")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        yield Blocker("none of its parameters requires a gradient")
    if args.fsdp:
        yield Blocker("accelerate's FSDP shards each layer, which cuts the stream: use DDP")
    if args.deepspeed:
        yield Blocker("DeepSpeed is not supported: use DDP")
    if args.n_gpu > 1:
        yield Blocker(f"{args.n_gpu} GPUs in one process are not supported: use torchrun")
