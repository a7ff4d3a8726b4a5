"""ladderize: a torch.compile backend that turns residual models into ladder networks.

    model = torch.compile(model, backend="ladderize", fullgraph=True)

`import ladderize` is not needed for that line; torch finds the backend by its entry point.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ladderize import collectives, testing
    from ladderize.aot.files import load
    from ladderize.aot.parallelize import parallelize, plan_parallel
    from ladderize.config import LadderConfig
    from ladderize.errors import LadderError, LadderWarning
    from ladderize.front import (
        compile,
        release_full_parameters,
        restore,
        restore_full_parameters,
    )
    from ladderize.programs import rewrite
    from ladderize.report import Report, last_report
    from ladderize.report.explain import explain
    from ladderize.verification import Verification, verify

__all__ = [
    "LadderConfig",
    "LadderError",
    "LadderWarning",
    "Report",
    "Verification",
    "__version__",
    "collectives",
    "compile",
    "explain",
    "last_report",
    "load",
    "parallelize",
    "plan_parallel",
    "release_full_parameters",
    "restore",
    "restore_full_parameters",
    "rewrite",
    "testing",
    "verify",
]
__version__ = "0.1.0"

_HOMES = {
    "LadderConfig": "config",
    "LadderError": "errors",
    "LadderWarning": "errors",
    "Report": "report",
    "Verification": "verification",
    "compile": "front",
    "explain": "report.explain",
    "last_report": "report",
    "load": "aot.files",
    "parallelize": "aot.parallelize",
    "plan_parallel": "aot.parallelize",
    "release_full_parameters": "front",
    "restore": "front",
    "restore_full_parameters": "front",
    "rewrite": "programs",
    "verify": "verification",
}

_ROOMS = frozenset({"collectives", "testing"})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"ladderize.{name}")
    if name not in _HOMES:  # nothing here needs torch before it is asked for
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ladderize.{_HOMES[name]}"), name)
