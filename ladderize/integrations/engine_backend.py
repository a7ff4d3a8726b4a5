"""A backend that logs its report, for engines that pass no options to a backend."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ladderize.backends import Lower
from ladderize.config.ladder_entry import LadderEntry
from ladderize.frontends.backend import compile_graph, ladderize
from ladderize.report import last_report


def reporting_backend(
    options: Mapping[str, Any],
    log: Callable[[Any], None],
    lower: Lower | None = None,
    checkpoint: LadderEntry | None = None,
) -> Callable[..., Any]:
    """Make the backend with `options`.

    Args:
        options: fields of `LadderConfig`.
        log: called with the report of each compiled graph.
        lower: lowering of the engine, if it has its own.
        checkpoint: ladder entry of the model's config.json.
    """

    @functools.wraps(ladderize)
    def compile_ladder(gm: Any, example_inputs: Any, **_: Any) -> Any:
        compiled = compile_graph(
            gm, example_inputs, options=options, lower=lower, checkpoint=checkpoint
        )
        log(last_report())
        return compiled

    return compile_ladder
