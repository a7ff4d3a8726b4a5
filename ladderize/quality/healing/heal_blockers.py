"""What keeps a model from being healed, or a run from being started."""

from collections.abc import Iterator
from typing import Any

from ladderize.errors import Blocker, LadderError
from ladderize.quality.healing.teacher import find_changed_adapters


def refuse_unhealable(model: Any, args: Any) -> None:
    """Raise `LadderError`, listing all that is in the way of `HealingTrainer(model, args)`."""
    blockers = [*find_changed_adapters(model), *_settings_in_the_way(model, args)]
    if blockers:
        raise LadderError("This model cannot be healed so:", blockers)


def _settings_in_the_way(model: Any, args: Any) -> Iterator[Blocker]:
    config = getattr(model, "config", None)
    if any(hasattr(config, name) for name in _LADDER_KEYS):
        yield Blocker("its weights are a ladder's: the standard model of them is no teacher")
    if getattr(config, "is_encoder_decoder", False):
        yield Blocker("it is an encoder-decoder, and a causal language model is needed")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        yield Blocker("none of its parameters requires a gradient")
    if args.fsdp:
        yield Blocker("accelerate's FSDP shards each layer, which cuts the stream: use DDP")
    if args.deepspeed:
        yield Blocker("DeepSpeed is not supported: use DDP")
    if args.n_gpu > 1:
        yield Blocker(f"{args.n_gpu} GPUs in one process: start it with torchrun")


_LADDER_KEYS = ("ladder", "ladderize", "ladder_layers")
"""Of configurations whose weights were trained as a ladder."""
