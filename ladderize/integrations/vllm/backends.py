"""The backend of a model that vLLM compiles, by compilation mode.

    mode 2    graph ── ladderize ── lowering of the options
    mode 3    graph ── ladderize ── VllmBackend: split at each attention ── Inductor, per piece

In mode 3 each all-reduce is waited for in the piece that launches it, because a piece may become a
CUDA graph, which must not end with a collective in flight. The all-reduce of an attention runs
while the MLP computes. The all-reduce of an MLP runs only while the next attention's projections
compute, up to the cut.
"""

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.fx import GraphModule

from ladderize import compat
from ladderize.backends.emitted import check_emitted
from ladderize.backends.inductor import DeferInInductor, keep_windows
from ladderize.backends.lowered import Lowered
from ladderize.backends.source_digest import files_behind
from ladderize.config.options import LadderConfig
from ladderize.graph.collectives import find_groups
from ladderize.integrations.engine_backend import reporting_backend
from ladderize.integrations.vllm.request import (
    PIECEWISE,
    entry_of,
    is_asked_for,
    mode_of,
    options_of,
)
from ladderize.passes.defer_waits import DeferWaits


def backend_for(config: Any, own: Callable[[], Any], *, is_encoder: bool) -> Any:
    """The backend that vLLM passes to `torch.compile` (`CompilationConfig.init_backend`).

    Args:
        config: complete configuration of vLLM.
        own: returns vLLM's own backend, which is used unless a ladder is requested.
        is_encoder: whether the model is an encoder of images or sound, which stays standard.
    """
    if not is_asked_for(config):
        return own()
    is_piecewise = mode_of(config) == PIECEWISE
    if is_encoder:
        return own() if is_piecewise else "eager"
    from vllm.logger import init_logger

    # vLLM would cache the compiled call for its next start, without ladderize's checks.
    os.environ["VLLM_USE_AOT_COMPILE"] = "0"
    options = options_of(config)
    if config.compilation_config.backend == "eager":
        options = {"lowering": "eager"} | options
    log = functools.partial(init_logger("vllm.ladderize").info, "%s")
    lower = VllmLowering(own()) if is_piecewise else None
    return reporting_backend(options, log, lower, entry_of(config))


class VllmLowering:
    """Splits and compiles the rewritten graph with vLLM's backend, with waits deferred in pieces.

    Args:
        backend: a `VllmBackend`, which compiles one graph.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    def __call__(
        self, gm: GraphModule, example_inputs: Sequence[Any], config: LadderConfig
    ) -> Lowered:
        from vllm.compilation.passes.inductor_pass import CallableInductorPass

        settings = self.backend.inductor_config
        settings |= config.lowering_options
        if find_groups(gm):
            keep_windows(settings)
        deferring = DeferInInductor(verify=config.verify, waits=DeferWaits.of(config))
        self.backend.pass_manager.add(CallableInductorPass(deferring, deferring.uuid()))
        # vLLM's cache key of compiled graphs covers the files that made them.
        self.backend.compilation_config.traced_files |= {
            str(path) for path in files_behind(__name__)
        }
        checking = compat.watch_loaded_code(_check) if config.verify == "code" else nullcontext()
        with compat.keep_waits_of_readers(), checking:
            return Lowered(self.backend(gm, example_inputs))


def _check(module: ModuleType, path: str) -> None:
    if hasattr(module, "call"):  # modules of single kernels do not
        check_emitted(Path(path).read_text())
