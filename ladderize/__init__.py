"""ladderize: a torch.compile backend that turns residual models into ladder networks.

    model = torch.compile(model, backend="ladderize", fullgraph=True)

`import ladderize` is not needed for that line; torch finds the backend by its entry point.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ladderize import quality, testing
    from ladderize.config.options import LadderConfig
    from ladderize.errors import LadderError, LadderWarning
    from ladderize.frontends.checkpoints.saving import save_pretrained
    from ladderize.frontends.compile import (
        compile,
        refresh,
        release_full_parameters,
        restore,
        restore_full_parameters,
    )
    from ladderize.frontends.explain import explain
    from ladderize.frontends.from_pretrained import from_pretrained
    from ladderize.frontends.rewrite import rewrite
    from ladderize.frontends.sharded.parallelize import parallelize, plan_parallel
    from ladderize.frontends.sharded.program_files import load
    from ladderize.graph import parallel_ops
    from ladderize.quality.sensitivity.block_plans import sensitivity
    from ladderize.report import Report, last_report
    from ladderize.testing.verify import Verification, verify

__all__ = [
    "LadderConfig",
    "LadderError",
    "LadderWarning",
    "Report",
    "Verification",
    "__version__",
    "compile",
    "explain",
    "from_pretrained",
    "last_report",
    "load",
    "parallel_ops",
    "parallelize",
    "plan_parallel",
    "quality",
    "refresh",
    "release_full_parameters",
    "restore",
    "restore_full_parameters",
    "rewrite",
    "save_pretrained",
    "sensitivity",
    "testing",
    "verify",
]
__version__ = "0.1.0"

_HOMES = {
    "LadderConfig": "config.options",
    "LadderError": "errors",
    "LadderWarning": "errors",
    "Report": "report",
    "Verification": "testing.verify",
    "compile": "frontends.compile",
    "explain": "frontends.explain",
    "from_pretrained": "frontends.from_pretrained",
    "last_report": "report",
    "load": "frontends.sharded.program_files",
    "parallelize": "frontends.sharded.parallelize",
    "plan_parallel": "frontends.sharded.parallelize",
    "refresh": "frontends.compile",
    "release_full_parameters": "frontends.compile",
    "restore": "frontends.compile",
    "restore_full_parameters": "frontends.compile",
    "rewrite": "frontends.rewrite",
    "save_pretrained": "frontends.checkpoints.saving",
    "sensitivity": "quality.sensitivity.block_plans",
    "verify": "testing.verify",
}

_ROOMS = {"parallel_ops": "graph.parallel_ops", "quality": "quality", "testing": "testing"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"ladderize.{_ROOMS[name]}")
    if name not in _HOMES:  # nothing here needs torch before it is asked for
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ladderize.{_HOMES[name]}"), name)
