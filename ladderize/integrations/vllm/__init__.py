"""Serve a ladder with vLLM: a plugin entry point, configured with vLLM's options.

    vllm serve DIR --additional-config '{"ladderize": {"layers": "last:50%"}}'
    vllm serve DIR --compilation-config '{"mode": 2, "backend": "ladderize"}'

    register ── in each process of vLLM
      ├── VllmConfig is made        ── request.note_request, check_configuration: refuse to start
      │                                an engine that would ignore the ladder
      └── a model is compiled       ── backends.backend_for: the mode's backend, with the options

vLLM has already sharded the model; `passes/spell_engine_ops.py` replaces its ops by torch ops. In
mode 2 the backend is ladderize. In mode 3 ladderize rewrites the graph before vLLM splits it, and
vLLM compiles the pieces.
"""

import functools
from collections.abc import Callable
from typing import Any

from ladderize import compat
from ladderize.integrations.vllm.backends import backend_for
from ladderize.integrations.vllm.obstacles import check_configuration
from ladderize.integrations.vllm.request import note_request, settle

TRIED = ("0.32",)
"""Prefixes of tested vLLM versions."""
_WRAPPED = "_ladderize_wrapped"


def register() -> None:
    """Register ladderize; vLLM calls this plugin of `vllm.general_plugins` in each process."""
    import vllm
    from vllm.config import CompilationConfig, VllmConfig

    compat.warn_if_untried("vLLM", vllm.__version__, TRIED)
    _wrap(VllmConfig, "__post_init__", _configure)
    _wrap(CompilationConfig, "init_backend", _backend_instead)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Wrap a method once per process, because vLLM may load its plugins again."""
    original = getattr(owner, name)
    if hasattr(original, _WRAPPED):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapped, _WRAPPED, True)
    setattr(owner, name, wrapped)


def _configure(original: Callable[..., Any], config: Any) -> None:
    """Wraps `VllmConfig.__post_init__`, which chooses the compilation mode."""
    note_request(config)
    original(config)
    settle(config)
    check_configuration(config)


def _backend_instead(
    original: Callable[..., Any],
    compilation: Any,
    config: Any,
    prefix: str = "",
    is_encoder: bool = False,
) -> Any:
    """Wraps `CompilationConfig.init_backend`, which returns the backend of each compiled model."""
    own = functools.partial(original, compilation, config, prefix, is_encoder)
    return backend_for(config, own, is_encoder=is_encoder)
