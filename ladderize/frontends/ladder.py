"""Run the pipeline before autograd and build its report, for all front ends.

laddered = ladder(Rewriting(gm, names, config), "forward")
publish(laddered.report("rewritten"), config)       in front ends that compile or rewrite
gm = laddered.result().gm                           raises if the pipeline refused the graph
"""

from dataclasses import dataclass

from ladderize.errors import LadderError
from ladderize.passes.before_autograd import rewrite_graph
from ladderize.passes.rewriting_state import Rewriting
from ladderize.report.builder import ReportBuilder
from ladderize.report.data import GraphReport


@dataclass
class Laddered:
    """The result of the pipeline for one graph.

    Attributes:
        state: state of the pipeline, with the graph.
        builder: builder of the report.
        name: name of the graph.
        error: reason for a refusal; a front end may set its own.
    """

    state: Rewriting
    builder: ReportBuilder
    name: str
    error: LadderError | None = None

    def result(self) -> Rewriting:
        """The rewritten graph.

        Raises:
            LadderError: the graph was refused.
        """
        if self.error is not None:
            raise self.error
        return self.state

    def report(self, outcome: str, refused: str = "refused") -> GraphReport:
        """The report, with `outcome`, or with `refused` if the graph was refused."""
        named = outcome if self.error is None else refused
        return self.builder.finish(self.state.log, self.name, named, self.error)


def ladder(state: Rewriting, name: str, index: int = 0) -> Laddered:
    """Rewrite the graph of `state` in place. A refusal is stored in the result, not raised.

    Args:
        state: state with the traced graph and the options.
        name: name of the graph in the report.
        index: number of the graph in the report.
    """
    laddered = Laddered(state, ReportBuilder(index), name)
    try:
        rewrite_graph(state, laddered.builder)
    except LadderError as error:
        laddered.error = error
    return laddered
