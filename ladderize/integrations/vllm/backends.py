"""The backend of a model that vLLM compiles, by the mode of compilation.

    mode 2    graph ── ladderize ── lowering of the options
    mode 3    graph ── ladderize ── VllmBackend: split at each attention ── Inductor, per piece

In mode 3 each all-reduce is waited for in the piece that launches it: a piece may become a CUDA
graph of its own, and a CUDA graph must not end with a collective in flight. The one behind an
attention runs while the MLP computes; the one behind an MLP runs only while the next attention's
projections compute, up to the cut.
"""

import os
from collections.abc import Callable, Mapping, Sequence
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
from ladderize.frontends.backend import compile_graph
from ladderize.graph.collectives import find_groups
from ladderize.integrations.vllm.request import PIECEWISE, is_asked_for, mode_of, options_of
from ladderize.report import last_report


def backend_for(config: Any, own: Callable[[], Any], *, is_encoder: bool) -> Any:
    """What vLLM hands to `torch.compile`, as its `CompilationConfig.init_backend` returns it.

    Args:
        config: vLLM's, complete.
        own: returns vLLM's own backend; it stays where nobody asks for a ladder.
        is_encoder: an encoder of images or sound has no tokens to serve, and stays standard.
    """
    if not is_asked_for(config):
        return own()
    is_piecewise = mode_of(config) == PIECEWISE
    if is_encoder:
        return own() if is_piecewise else "eager"
    # What vLLM would keep for its next start is the compiled call, without ladderize's checks.
    os.environ["VLLM_USE_AOT_COMPILE"] = "0"
    options = options_of(config)
    if is_piecewise:
        return _logged(options, VllmLowering(own()))
    if config.compilation_config.backend == "eager":
        options = {"lowering": "eager"} | options
    return _logged(options, None)


def _logged(options: Mapping[str, Any], lower: "VllmLowering | None") -> Callable[..., Any]:
    """The backend with its options, which vLLM cannot hand over; it logs the report."""
    from vllm.logger import init_logger

    logger = init_logger("vllm.ladderize")

    def compile_ladder(gm: Any, example_inputs: Any, **_: Any) -> Any:
        compiled = compile_graph(gm, example_inputs, options=options, lower=lower)
        logger.info("%s", last_report())
        return compiled

    return compile_ladder


class VllmLowering:
    """Has vLLM's own backend split and compile the rewritten graph, with waits deferred in pieces.

    Args:
        backend: a `VllmBackend`; it compiles one graph.
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
        deferring = DeferInInductor(verify=config.verify)
        self.backend.pass_manager.add(CallableInductorPass(deferring, deferring.uuid()))
        # vLLM's key of compiled graphs covers the files that made them.
        self.backend.compilation_config.traced_files |= {
            str(path) for path in files_behind(__name__)
        }
        checking = compat.watch_loaded_code(_check) if config.verify == "code" else nullcontext()
        with compat.keep_waits_of_readers(), checking:
            return Lowered(self.backend(gm, example_inputs))


def _check(module: ModuleType, path: str) -> None:
    if hasattr(module, "call"):  # the modules of single kernels have none
        check_emitted(Path(path).read_text())
