"""vLLM serves a ladder: found by its plugin entry point, configured by its own options.

    vllm serve DIR --additional-config '{"ladderize": {"layers": "last:50%"}}'
    vllm serve DIR --compilation-config '{"mode": 2, "backend": "ladderize"}'

    register ── in each process of vLLM
      ├── VllmConfig is made        ── request.note_request, check_configuration: an engine that
      │                                would ignore the ladder does not start
      └── a model is compiled       ── backends.backend_for: the mode's backend, with the options

vLLM has sharded the model already; its own ops are spelled in torch's words by
`passes/spell_engine_ops.py`. In mode 2 the backend is ladderize. In mode 3 ladderize rewrites the
graph before vLLM splits it, and vLLM compiles the pieces.
"""

import functools
from collections.abc import Callable
from typing import Any

from ladderize import compat
from ladderize.integrations.vllm.backends import backend_for
from ladderize.integrations.vllm.obstacles import check_configuration
from ladderize.integrations.vllm.request import note_request, settle

TRIED = ("0.32",)
"""Versions of vLLM, by their beginning."""
_WRAPPED = "_ladderize_wrapped"


def register() -> None:
    """Called by vLLM in each of its processes, as a plugin of the group `vllm.general_plugins`."""
    import vllm
    from vllm.config import CompilationConfig, VllmConfig

    compat.warn_if_untried("vLLM", vllm.__version__, TRIED)
    _wrap(VllmConfig, "__post_init__", _configure)
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


def _configure(original: Callable[..., Any], config: Any) -> None:
    """`VllmConfig.__post_init__`: it decides on the mode of compilation."""
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
    """`CompilationConfig.init_backend`: vLLM asks it for the backend of each model it compiles."""
    own = functools.partial(original, compilation, config, prefix, is_encoder)
    return backend_for(config, own, is_encoder=is_encoder)
