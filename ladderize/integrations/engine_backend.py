"""What the engines have in common: versions that were tried, and a backend that logs its report."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ladderize.errors import LadderWarning
from ladderize.frontends.backend import ladderize
from ladderize.report import last_report


def warn_of_untried(engine: str, version: str, tried: Sequence[str]) -> None:
    """Warn unless `version` begins like one of those that were tried; the checks decide then."""
    if not version.startswith(tuple(tried)):
        known = ", ".join(tried)
        warnings.warn(
            LadderWarning(f"{engine} {version} was not tried with ladderize; {known} was."),
            stacklevel=3,
        )


def reporting_backend(options: Mapping[str, Any], log: Callable[[Any], None]) -> Callable[..., Any]:
    """The backend with `options`, for an engine that hands none over.

    Args:
        options: the fields of `LadderConfig`.
        log: is given the report of what became of the model.
    """

    @functools.wraps(ladderize)
    def compile_ladder(gm: Any, example_inputs: Any, **_: Any) -> Any:
        compiled = ladderize(gm, example_inputs, options=options)
        log(last_report())
        return compiled

    return compile_ladder
