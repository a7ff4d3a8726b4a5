"""Findings from planning one graph are used for the model's next graph, or discarded."""

import pytest
import torch
from helpers.fake_group import fake_group
from helpers.ranks import mesh
from helpers.sharded import MODELS, Sharder, embeds
from torch import nn

import ladderize
from ladderize.frontends.mesh.local_parts import PARTS
from ladderize.passes import before_autograd


def planned(model, earlier, *args, **kwargs):
    """The plan for one graph of `model`."""
    torch._dynamo.reset()
    sharder = Sharder(2, earlier=earlier)
    with torch.no_grad():
        torch.compile(model, backend=sharder, fullgraph=True, dynamic=False)(*args, **kwargs)
    return sharder.plan


@pytest.mark.parametrize(
    ("name", "options"), [("llama", {"kv": 1}), ("gpt2", {}), ("gpt2", {"heads": 3})]
)
def test_another_length_is_planned_without_a_search(name, options):
    model = MODELS[name](layers=1, **options)
    long, short = (embeds(length=n, hidden=model.config.hidden_size) for n in (6, 4))
    first = planned(model, None, inputs_embeds=long)
    anew = planned(model, None, inputs_embeds=short)
    known = planned(model, first.findings, inputs_embeds=short)
    assert first.refusals or first.findings.cuts
    assert known.refusals == 0
    assert known.visits < anew.visits
    assert known.decisions() == anew.decisions()
    assert known.describe() == anew.describe()
    assert known.findings == first.findings


class Forked(nn.Module):
    """A branch whose code is one of several."""

    def __init__(self, width=8):
        super().__init__()
        self.up = nn.Linear(8, width)
        self.down, self.joined = nn.Linear(width, 8), nn.Linear(width // 2, 8)

    def forward(self, x, how):
        hidden = torch.relu(self.up(x))
        if how == "halves":
            first, second = hidden.chunk(2, -1)
            return x + self.joined(first * second)
        if how == "heads":
            hidden = hidden.unflatten(-1, (2, -1)).softmax(-1).flatten(-2)
        x = x + self.down(hidden)
        return (x, hidden) if how == "returns" else x


@pytest.mark.parametrize(
    ("before", "after"),
    [("returns", ""), ("halves", "heads")],
    ids=["a refusal that is gone", "cuts that do not fit"],
)
def test_a_graph_that_can_be_divided_otherwise_is_searched_anew(before, after):
    model, x = Forked(), torch.ones(2, 4, 8)
    first = planned(model, None, x, before)
    wanted = planned(model, None, x, after)
    assert first.findings.bans or first.findings.cuts
    assert wanted.placements
    assert planned(model, first.findings, x, after).decisions() == wanted.decisions()


def test_sizes_that_have_changed_are_searched_anew():
    x = torch.ones(2, 4, 8)
    first, wanted = (planned(Forked(width), None, x, "") for width in (6 + 1, 8))
    assert first.findings.bans
    assert planned(Forked(8), first.findings, x, "").decisions() == wanted.decisions()


def test_a_recompile_does_not_search_and_reads_the_same_parts(monkeypatch):
    plans, plan_sharding = [], before_autograd.plan_sharding
    monkeypatch.setattr(
        before_autograd,
        "plan_sharding",
        lambda *args, **kwargs: plans.append(plan_sharding(*args, **kwargs)) or plans[-1],
    )
    torch._dynamo.reset()
    model = MODELS["llama"](kv=1)
    with fake_group(), torch.no_grad(), pytest.warns(ladderize.LadderWarning, match="Kept whole"):
        ladderize.compile(model, mesh=mesh(), lowering="eager")
        for length in (6, 4):
            model(inputs_embeds=embeds(length=length))
    assert [bool(plan.refusals) for plan in plans] == [True, False]
    assert plans[0].placements == plans[1].placements
    assert {len(PARTS.places(parameter)) for parameter in model.parameters()} == {0, 1}
