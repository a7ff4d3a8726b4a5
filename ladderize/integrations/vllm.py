"""vLLM serves a ladder: found by its plugin entry point, configured by its own options.

    vllm serve DIR --compilation-config '{"mode": 2, "backend": "ladderize"}'
                   --additional-config '{"ladderize": {"layers": "last:50%"}}'

    register ── in each process of vLLM
      ├── VllmConfig is made        ── check: an engine that would ignore the ladder does not start
      └── a model is compiled       ── backend_of: the backend with the options, and its report

The backend rewrites the whole graph of a model that vLLM has sharded already; vLLM's own ops are
spelled in torch's words by `passes/spell_engine_ops.py`.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.integrations.engine_backend import reporting_backend, warn_of_untried

NAME = "ladderize"
TRIED = ("0.32",)
"""Versions of vLLM, by their beginning."""
DYNAMO_TRACE_ONCE = 2
"""The one mode in which vLLM hands a backend the whole graph."""
COMPILATION = '{"mode": 2, "backend": "ladderize"}'
_WRAPPED = "_ladderize_wrapped"


def register() -> None:
    """Called by vLLM in each of its processes, as a plugin of the group `vllm.general_plugins`."""
    import vllm
    from vllm.config import CompilationConfig, VllmConfig

    warn_of_untried("vLLM", vllm.__version__, TRIED)
    _wrap(VllmConfig, "__post_init__", _check_after)
    _wrap(CompilationConfig, "init_backend", _backend_instead)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Once in a process: vLLM may load its plugins again."""
    original = getattr(owner, name)
    if hasattr(original, _WRAPPED):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapped, _WRAPPED, True)
    setattr(owner, name, wrapped)


def _check_after(original: Callable[..., Any], config: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(config, *args, **kwargs)
    check(config)
    return result


def _backend_instead(
    original: Callable[..., Any],
    compilation: Any,
    config: Any,
    prefix: str = "",
    is_encoder: bool = False,
) -> Any:
    """`CompilationConfig.init_backend`: vLLM asks it for the backend of each model it compiles."""
    if compilation.backend != NAME:
        return original(compilation, config, prefix, is_encoder)
    # What it would keep for its next start is the emitted code, without ladderize's checks.
    os.environ["VLLM_USE_AOT_COMPILE"] = "0"
    return "eager" if is_encoder else backend_of(options_of(config))


def backend_of(options: Mapping[str, Any]) -> Callable[..., Any]:
    """The backend with `options`, which vLLM cannot hand over; it logs what became of the model."""
    from vllm.logger import init_logger

    return reporting_backend(options, functools.partial(init_logger("vllm.ladderize").info, "%s"))


def options_of(config: Any) -> dict[str, Any]:
    """Those of the checkpoint, if it says that it is a ladder; and those of `--additional-config`.

    Args:
        config: vLLM's.

    Raises:
        LadderError: the two contradict each other, or are no options of a graph that is sharded.
    """
    given = dict(_additional(config).get(NAME) or {})
    own = dict(getattr(_model_config(config), NAME, None) or {})
    differing = [
        Blocker(f"{name}={given[name]!r} is asked for, and the checkpoint is of {own[name]!r}")
        for name in own
        if name in given and given[name] != own[name]
    ]
    if differing:
        raise LadderError(
            "vLLM is asked for another ladder than the checkpoint is:",
            differing,
            "leave these out of --additional-config: config.json says them",
        )
    options = own | given
    LadderConfig.from_options(options)
    return options


def check(config: Any) -> None:
    """Raise where vLLM would serve the standard net, or a part of the ladder would be standard.

    Args:
        config: vLLM's, complete.

    Raises:
        LadderError: with all that is in the way. Without a word of ladderize in the configuration
            nothing is.
    """
    asks = NAME in _additional(config) or getattr(_model_config(config), NAME, None)
    if config.compilation_config.backend == NAME:
        options_of(config)
    elif not asks:
        return
    if blockers := list(_obstacles(config)):
        raise LadderError(
            "vLLM would not serve the ladder that it is asked for:",
            blockers,
            f"""leave these out; --compilation-config '{COMPILATION}'""",
        )


def _obstacles(config: Any) -> Iterator[Blocker]:
    compilation = config.compilation_config
    if compilation.backend != NAME:
        asked = "the checkpoint" if NAME not in _additional(config) else "--additional-config"
        yield Blocker(f"{asked} asks for a ladder, and the backend is {compilation.backend!r}")
    mode = int(compilation.mode or 0)
    if mode != DYNAMO_TRACE_ONCE:
        why = "it cuts the graph, or asks no backend" if mode else "nothing is compiled"
        yield Blocker(f"the mode of compilation is {mode} in the end: {why}")
    if config.parallel_config.pipeline_parallel_size > 1:
        yield Blocker(
            "pipeline parallelism: the first block of each stage would read the stream fresh"
        )
    if config.speculative_config is not None:
        yield Blocker("speculative decoding: its draft model would be made a ladder too")
    if config.lora_config is not None:
        yield Blocker("LoRA: its adapters were not tried, and on CPU vLLM compiles nothing with it")


def _additional(config: Any) -> Mapping[str, Any]:
    additional = config.additional_config
    return additional if isinstance(additional, Mapping) else {}


def _model_config(config: Any) -> Any:
    """The Hugging Face configuration of the model; None where vLLM makes a configuration alone."""
    model = config.model_config
    return None if model is None else model.hf_config
