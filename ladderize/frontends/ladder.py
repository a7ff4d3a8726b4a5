"""A graph through the pipeline before autograd, and the report of it: what every front end does.

laddered = ladder(Rewriting(gm, names, config), "forward")
publish(laddered.report("rewritten"), config)       the front ends that compile, or rewrite
gm = laddered.result().gm                           raises what the pipeline refused
"""

from dataclasses import dataclass

from ladderize.errors import LadderError
from ladderize.passes.before_autograd import rewrite_graph
from ladderize.passes.rewriting_state import Rewriting
from ladderize.report.builder import ReportBuilder
from ladderize.report.data import GraphReport


@dataclass
class Laddered:
    """What came of one graph.

    Attributes:
        state: the graph as the pipeline left it, and what was found.
        builder: the report in the making.
        name: of the graph.
        error: why the graph was refused; a front end may add a reason of its own.
    """

    state: Rewriting
    builder: ReportBuilder
    name: str
    error: LadderError | None = None

    def result(self) -> Rewriting:
        """The rewritten graph.

        Raises:
            LadderError: it was refused.
        """
        if self.error is not None:
            raise self.error
        return self.state

    def report(self, outcome: str, refused: str = "refused") -> GraphReport:
        """The report, with the outcome of a graph that was not refused, or else `refused`."""
        named = outcome if self.error is None else refused
        return self.builder.finish(self.state.log, self.name, named, self.error)


def ladder(state: Rewriting, name: str, index: int = 0) -> Laddered:
    """Rewrite the graph of `state` in place. Raises nothing that the pipeline refuses.

    Args:
        state: the traced graph and what is asked of it.
        name: of the graph, for the report.
        index: its number in the report.
    """
    laddered = Laddered(state, ReportBuilder(index), name)
    try:
        rewrite_graph(state, laddered.builder)
    except LadderError as error:
        laddered.error = error
    return laddered
