"""Support for transformers' `generate` with a ladder.

    prefill    encoder(ids)?  model(ids)      eager, unless the modules themselves are compiled
    decode     model(one token, cache) …      compiled by `generate` with `compile_config`, and
                                              on accelerators with a static cache also without

transformers is not imported: its models are recognized by their attributes.
"""

import traceback
import warnings
from typing import Any

from torch import nn

from ladderize import compat
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError, LadderWarning


def find_encoder(model: nn.Module) -> nn.Module | None:
    """The encoder that `generate` calls directly, before the model; None without one."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    encoder = model.get_encoder()  # type: ignore[operator]  # a method of transformers' models
    assert isinstance(encoder, nn.Module)
    return encoder


def refuse_relative_counts(config: LadderConfig) -> None:
    """Raise `LadderError` for options that select other blocks if the encoder is compiled alone."""
    relative = [
        f"{name}={value!r}"
        for name, value in (
            ("blocks", config.blocks),
            ("expect_blocks", config.expect_blocks),
            ("layers", config.layers if config.selection.counts_from_the_end else None),
        )
        if value is not None
    ]
    if relative:
        raise LadderError(
            "generate() calls the encoder of this model separately, where these options would "
            "count other blocks:",
            map(Blocker, relative),
            'name the layers: layers="4:8" or a list',
        )


def set_compile_by_generate(model: nn.Module, disabled: bool | None) -> bool | None:
    """Set whether `generate` must not compile the decode step; returns the old value.

    It would compile the standard model, because its backend would trace through the ladder's.
    """
    settings: Any = getattr(model, "generation_config", None)
    if settings is None:
        return None
    before: bool | None = settings.disable_compile
    settings.disable_compile = disabled
    return before


def warn_of_standard_prefill() -> None:
    """Warn if `generate` itself started this compilation, because then the prefill is standard.

    Call this from inside the backend.
    """
    for frame, _ in traceback.walk_stack(None):
        model, forward = frame.f_locals.get("self"), frame.f_locals.get("model_forward")
        if not isinstance(model, nn.Module) or compat.is_compiled_in_place(model):
            continue
        if forward is not None and forward is getattr(model, "_compiled_call", None):
            warnings.warn(
                LadderWarning(
                    "generate() with compile_config compiles only the decode step of "
                    f"{type(model).__name__}: the prompt runs through the standard model, "
                    "which fills the KV cache. Call ladderize.compile(model) instead of passing "
                    "compile_config; then prefill and decode are both the ladder."
                ),
                stacklevel=2,
            )
            return
