"""The pipelines as data: step names, stopping after a step, observers, steps that run once."""

import ast
import itertools
from pathlib import Path

import pytest
import torch
from helpers.graphs import Residual, capture
from torch.export import export

import ladderize
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError
from ladderize.frontends.rewrite import graph_after
from ladderize.passes import before_autograd
from ladderize.passes.after_autograd import AFTER_AUTOGRAD
from ladderize.passes.before_autograd import BEFORE_AUTOGRAD, rewrite_graph
from ladderize.passes.rewriting_state import RankGroup, Rewriting
from ladderize.passes.runner import find_step
from ladderize.streams import context, recurrence

PACKAGE = Path(ladderize.__file__).parent
EVERY = (*BEFORE_AUTOGRAD, *AFTER_AUTOGRAD)


class Seen:
    def __init__(self):
        self.steps = []

    def see(self, step, state):
        self.steps.append((step, len(state.streams)))


def state_of(**config):
    gm, names = capture(Residual(), torch.randn(3, 8))
    return Rewriting(gm, names, LadderConfig(lowering="eager", **config))


def test_each_step_has_a_name_of_its_own_and_is_found_by_it():
    names = [step.name for step in EVERY]
    assert len(set(names)) == len(names)
    for spelled in ("RerouteReads", "reroute-reads", "reroute_reads"):
        assert find_step(EVERY, spelled).name == "RerouteReads"
    with pytest.raises(LadderError, match="did you mean 'RerouteReads'") as caught:
        find_step(EVERY, "RerouteRead")
    assert "PinOrder" in str(caught.value)


def test_passes_are_those_that_may_edit():
    state = rewrite_graph(state_of())
    kinds = {entry.name: entry.kind for entry in state.log.entries}
    assert kinds["find_streams"] == kinds["choose_blocks"] == "analysis"
    assert kinds["refuse_unfit"] == kinds["check_recurrence"] == "check"
    passes = [entry.name for entry in state.log.entries if entry.kind == "pass"]
    assert passes == ["InlineRegions", "Functionalize", "SpellSums", "RerouteReads"]
    report = ladderize.explain(Residual(), torch.randn(3, 8))
    assert [entry.name for entry in report.passes] == passes
    assert "4 passes, 3 edits" in str(report)


def test_an_observer_sees_each_step_that_ran_and_changes_nothing():
    seen = Seen()
    state = rewrite_graph(state_of(), seen)
    assert [name for name, _ in seen.steps] == [entry.name for entry in state.log.entries]
    assert dict(seen.steps)["SpellSums"] == 0
    assert dict(seen.steps)["find_streams"] == 1
    assert state.gm.code == rewrite_graph(state_of()).gm.code


def test_the_graph_is_analyzed_once_and_read_twice(monkeypatch):
    made, read = [], []
    make, follow = context.AnalysisContext.__init__, recurrence.read_recurrence
    monkeypatch.setattr(
        context.AnalysisContext, "__init__", lambda *args: (made.append(1), make(*args))[1]
    )
    monkeypatch.setattr(
        before_autograd, "read_recurrence", lambda *args: (read.append(1), follow(*args))[1]
    )
    ladderize.explain(Residual(), torch.randn(3, 8))
    assert (len(made), len(read)) == (1, 2)


@pytest.mark.parametrize(
    ("step", "stale", "sharded", "deferred"),
    [
        ("find_streams", False, False, False),
        ("RerouteReads", True, False, False),
        ("ShardBranches", True, True, False),
        ("DeferWaits", True, True, True),
    ],
)
def test_the_graph_stands_as_the_named_step_left_it(step, stale, sharded, deferred):
    program = export(Residual(), (torch.randn(3, 8),), strict=True)
    gm = graph_after(program, LadderConfig(), RankGroup(2, "group"), step)
    ops = [str(node.target) for node in gm.graph.nodes]
    # Once reads are stale, the branches 0 and 1 and the first sum read it; before, 0 and the sum.
    embedding = next(node for node in gm.graph.nodes if str(node.target) == "aten.linear.default")
    assert (len(embedding.users) == 3) is stale
    assert ("ladderize.reduce.default" in ops) is sharded
    order = [op for op in ops if op in ("ladderize.reduce.default", "ladderize.wait.default")]
    pairs = list(itertools.pairwise(order))
    assert (("ladderize.reduce.default", "ladderize.reduce.default") in pairs) is deferred
    assert "ladderize" not in program.graph_module.code, "the program itself is left as it is"


def test_last_report_is_for_users_alone():
    """Nothing inside the package reads it: front ends get what they need as return values.

    Integrations may read it, to show the report to users of an engine.
    """
    readers = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "integrations":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("last_report"):
                readers.append(str(path.relative_to(PACKAGE)))
    assert readers == []
