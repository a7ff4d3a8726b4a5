"""Refuse to start a vLLM engine that would not serve the requested ladder."""

from collections.abc import Iterator
from typing import Any

from ladderize.errors import Blocker, LadderError
from ladderize.integrations.vllm.request import (
    NAME,
    PIECEWISE,
    VLLMS_OWN,
    WHOLE,
    is_asked_for,
    mode_of,
    options_of,
)

WITHOUT_A_DRAFT_MODEL = ("ngram", "suffix")
"""Methods of speculative decoding that propose tokens from the text, without a draft model."""


def check_configuration(config: Any) -> None:
    """Raise if vLLM would serve the standard model, or part of the ladder would be standard.

    Args:
        config: complete configuration of vLLM. If it does not request a ladder, nothing is checked.

    Raises:
        LadderError: listing all obstacles.
    """
    if not is_asked_for(config):
        return
    if blockers := list(_obstacles(config)):
        raise LadderError(
            "vLLM would not serve the requested ladder:",
            blockers,
            "leave these out of vLLM's options",
        )


def _obstacles(config: Any) -> Iterator[Blocker]:
    compilation, mode = config.compilation_config, mode_of(config)
    if mode not in (WHOLE, PIECEWISE):
        why = "vLLM calls no backend" if mode else "vLLM compiles nothing"
        yield Blocker(f"compilation mode {mode}: {why}")
    served = {WHOLE: (NAME, VLLMS_OWN, "eager"), PIECEWISE: (VLLMS_OWN,)}.get(mode)
    if served is not None and compilation.backend not in served:
        yield Blocker(f"backend {compilation.backend!r} in mode {mode}: not one of {served}")
    lowering = options_of(config).get("lowering", VLLMS_OWN)
    if mode == PIECEWISE and lowering != VLLMS_OWN:
        yield Blocker(f"lowering={lowering!r}: in mode {mode} vLLM compiles the pieces")
    if compilation.use_inductor_graph_partition:
        yield Blocker("use_inductor_graph_partition: a collective would be in flight at each cut")
    if config.parallel_config.pipeline_parallel_size > 1:
        yield Blocker(
            "pipeline parallelism: the first block of each stage would read the stream fresh"
        )
    speculative = config.speculative_config
    if speculative is not None and speculative.method not in WITHOUT_A_DRAFT_MODEL:
        yield Blocker(
            f"speculative decoding with {speculative.method!r}: the draft model would become a "
            "ladder too"
        )
    if config.lora_config is not None:
        yield Blocker("LoRA is not tested, and on CPU vLLM compiles nothing with it")
