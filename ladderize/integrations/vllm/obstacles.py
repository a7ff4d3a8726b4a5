"""An engine that would serve anything but the ladder it is asked for does not start."""

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
"""Methods of speculative decoding that propose tokens of the text itself."""


def check_configuration(config: Any) -> None:
    """Raise where vLLM would serve the standard model, or a part of the ladder would be standard.

    Args:
        config: vLLM's, complete. Without a request for a ladder nothing is checked.

    Raises:
        LadderError: with everything that is in the way.
    """
    if not is_asked_for(config):
        return
    if blockers := list(_obstacles(config)):
        raise LadderError(
            "vLLM would not serve the ladder that it is asked for:",
            blockers,
            "leave these out of vLLM's options",
        )


def _obstacles(config: Any) -> Iterator[Blocker]:
    compilation, mode = config.compilation_config, mode_of(config)
    if mode not in (WHOLE, PIECEWISE):
        why = "vLLM asks no backend" if mode else "vLLM compiles nothing"
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
            f"speculative decoding with {speculative.method!r}: a draft model would be made a "
            "ladder too"
        )
    if config.lora_config is not None:
        yield Blocker("LoRA: its adapters were not tried, and on CPU vLLM compiles nothing with it")
