"""`ladderize.explain`: report what would be done to a model, without compiling it.

    Dynamo ── graph ── the passes before autograd ── Report          nothing is lowered or run
      └ graph breaks: again, with the pieces run op by op to reach the later ones

The passes run inside a backend, where Dynamo's frame is known, exactly as in a compilation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from ladderize import compat
from ladderize.compat.frames import current_frame
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker
from ladderize.frontends.backend import current_adviser
from ladderize.frontends.broken_frames import BrokenFrames
from ladderize.frontends.checkpoints.own_entry import own_entry
from ladderize.frontends.dynamo_graph import copy_graph, ladder_frame
from ladderize.frontends.rewrite import explain_program
from ladderize.passes.before_autograd import dump_folder
from ladderize.report.data import GraphReport, Refusal
from ladderize.report.publish import as_report, shown_options, versions, write
from ladderize.report.report import Report


def explain(
    model: Callable[..., Any] | ExportedProgram,
    /,
    *args: Any,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Report:
    """Report what `torch.compile(model, backend="ladderize", options=options)` would do.

    Traces the call with Dynamo and runs the passes on the graph, but compiles nothing, copies no
    weights and does not run the model. Only if Dynamo cannot trace the call as one graph, the
    model is run once, op by op, to reach the graphs after the breaks.

    Args:
        model: module or function, compiled or not; or an exported program.
        args, kwargs: arguments of the call; none for an exported program.
        options: fields of `LadderConfig`.

    Returns:
        The report. Refusals are in `report.refused` and do not raise.

    Raises:
        LadderError: options are invalid.
        Exception: any error that the model raises.

    Example:
        >>> report = ladderize.explain(model, input_ids, options={"layers": "last:50%"})
        >>> print(report)
    """
    config = LadderConfig.from_options(options, checkpoint=own_entry(model))
    if isinstance(model, ExportedProgram):
        return explain_program(model, config)
    return explain_call(model, args, kwargs, config)


def explain_call(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], config: LadderConfig
) -> Report:
    """Report what a compilation with `config` would do with one call."""
    explainer = _Explainer(config)
    with compat.undo_caching(), compat.uncompiled(model) as plain:
        try:
            torch.compile(plain, backend=explainer.see_first, fullgraph=True)(*args, **kwargs)
        except _Seen:
            return explainer.report()
        except compat.dynamo_errors() as error:
            explainer.begin_again(*compat.break_of(error))
        else:
            return explainer.report()
        torch.compile(plain, backend=explainer.see_each)(*args, **kwargs)
    return explainer.report()


class _Seen(Exception):
    """Ends the call when its graph is known."""


class _Explainer:
    """Backends that run the passes with the options in `config` and keep the reports."""

    def __init__(self, config: LadderConfig) -> None:
        self.config = config
        self.graphs: list[GraphReport] = []
        self.breaks: list[Blocker] = []
        self.broken_frames = BrokenFrames()

    def begin_again(self, reason: str, place: str) -> None:
        """Start again after a graph break with this `reason`."""
        self.graphs.clear()
        self.breaks = [Blocker(f"graph break: {reason}", place)]
        self.broken_frames.forget()

    def see_first(self, gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Stop after the first graph with a stream. Graphs without one, such as hooks', are run."""
        run = self.see_each(gm, inputs)
        if self.graphs[-1].streams:
            raise compat.as_backend_error(_Seen())
        return run

    def see_each(self, gm: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        standard = copy_graph(gm)
        laddered = ladder_frame(
            gm, self.config, self.broken_frames, current_adviser(), index=len(self.graphs)
        )
        graph = laddered.report("explained", refused="explained")
        write(as_report(graph, self.config), dump_folder(self.config))
        self.graphs.append(graph)
        self.breaks += current_frame(gm).cuts()
        gm.graph = standard
        gm.recompile()
        return gm

    def report(self) -> Report:
        return Report(
            graphs=tuple(self.graphs) or (_NO_GRAPH,),
            breaks=tuple(dict.fromkeys(self.breaks)),
            options=shown_options(self.config),
            versions=versions(),
        )


_NO_GRAPH = GraphReport(
    index=0,
    name="",
    outcome="explained",
    refusal=Refusal(
        "Dynamo captured no graph: nothing that it compiles was called.",
        cure="explain the module that computes, not a function that Dynamo skips",
    ),
)
