"""The damage of sets of blocks, equal to that with `ladderize.compile`, and the plan file."""

import copy
import json
from contextlib import closing

import pytest
import torch
from helpers.language_models import language_model
from torch import nn

import ladderize
from ladderize import LadderError
from ladderize.config.block_plan import BlockPlan
from ladderize.config.options import LadderConfig
from ladderize.passes.blend_reads import Blends
from ladderize.quality.measures import measure, positions_of
from ladderize.quality.sensitivity.damage_meter import DamageMeter
from ladderize.quality.sensitivity.reusing_run import ReusingRun

BATCHES = [
    {"input_ids": torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(i))}
    for i in range(2)
]


@pytest.fixture(scope="module")
def model():
    return language_model("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def plan(model):
    return ladderize.sensitivity(model, BATCHES, width=3)


@torch.no_grad()
def _divergence(model, blocks):
    ladder = ladderize.compile(copy.deepcopy(model), blocks=blocks, lowering="eager")
    kl = count = 0.0
    for batch in BATCHES:
        standard = model(**batch).logits
        positions = positions_of(batch, standard, predicts_next=True)
        found = measure(standard, ladder(**batch).logits, *positions)
        kl, count = kl + found.kl.sum(), count + found.tokens.sum()
    return float(kl / count)


def test_every_set_costs_what_its_ladder_does(model, plan):
    for found in (plan.sets[1], plan.sets[3], plan.references["attention only"]):
        assert found.kl == pytest.approx(_divergence(model, found.blocks), rel=1e-4)
    assert plan.blocks[3].kl == pytest.approx(_divergence(model, [3]), rel=1e-4)
    assert plan.references["attention only"].blocks == [2, 4]
    assert plan.references["last:50%"].blocks == [3, 4, 5]


def test_what_the_plan_says(model, plan):
    sizes = [len(found.blocks) for found in plan.sets]
    assert sizes == sorted(sizes) and {*sizes} == {1, 2, 3, 4, 5}
    assert [found.share for found in plan.sets] == pytest.approx([0.2 * size for size in sizes])
    assert len({tuple(found.blocks) for found in plan.sets}) == len(sizes)
    assert [block.module for block in plan.blocks[:2]] == [
        "model.layers.0.self_attn",
        "model.layers.0.mlp",
    ]
    assert (plan.blocks[0].kl, plan.blocks[0].share, plan.blocks[3].layer) == (None, 0.0, 1)
    assert plan.tokens == 32
    assert plan.standard_loss == pytest.approx(_standard_loss(model), rel=1e-5)
    cheapest = min(block.kl for block in plan.blocks[1:])
    assert plan.best(0.2).kl <= cheapest  # a larger set may cost less
    assert plan.best(0.6).kl == min(found.kl for found in plan.sets if found.share > 0.59)


def _standard_loss(model):
    losses = [model(**batch, labels=batch["input_ids"]).loss for batch in BATCHES]
    return sum(losses).item() / len(losses)


def test_sets_in_one_run(model, plan):
    found = ladderize.sensitivity(model, BATCHES, width=3, sets_at_once=4)
    assert [each.blocks for each in found.sets] == [each.blocks for each in plan.sets]
    assert [e.kl for e in found.sets] == pytest.approx([e.kl for e in plan.sets], rel=1e-4)


def test_what_comes_before_the_first_changed_block_is_not_run_again(model):
    with closing(DamageMeter(model, BATCHES[:1], {})) as meter:
        whole = meter.num_nodes
        meter.measure(frozenset(), [frozenset({5})])
        assert meter.num_nodes - 2 * whole < whole / 4  # the base, and what follows block 5
        before = meter.num_nodes
        meter.measure(frozenset({1}), [frozenset({1, 3, 5}), frozenset({1, 5})])
        assert meter.num_nodes - before < 2 * whole


class SequenceFirst(nn.Module):
    """Its stream is `[length, batch, features]`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.steps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = x.transpose(0, 1)
        for step in self.steps:
            x = x + step(x).tanh()
        return x.transpose(0, 1)


def test_sets_in_one_run_need_the_batch_first():
    batch = {"x": torch.randn(2, 4, 8)}
    assert {*map(len, _sets_of(ladderize.sensitivity(SequenceFirst(), [batch])))} == {1, 2}
    with pytest.raises(LadderError, match="the first dim of its stream is not the batch"):
        ladderize.sensitivity(SequenceFirst(), [batch], sets_at_once=2)


def _sets_of(plan):
    return [found.blocks for found in plan.sets]


def test_any_number_of_models():
    """Dynamo keeps eight graphs of one function, and all models of a class share theirs."""
    for _ in range(9):
        assert ladderize.sensitivity(SequenceFirst(), [{"x": torch.randn(2, 4, 8)}], width=1).sets


class WritesInPlace(nn.Module):
    """Blocks that each write their own tensor; with `is_shared` all write the same one."""

    def __init__(self, is_shared):
        super().__init__()
        torch.manual_seed(0)
        self.steps = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.is_shared = is_shared

    def forward(self, x):
        memory = torch.zeros_like(x)
        for step in self.steps:
            branch = step(x)
            own = memory if self.is_shared else torch.zeros_like(x)
            own[:, 1:] += branch[:, 1:]
            x = x + own * 0.5
        return x


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_run_does_not_begin_behind_what_is_written_again(is_shared):
    model = WritesInPlace(is_shared).eval()
    batch = {"x": torch.randn(2, 3, 8)}
    sets = [frozenset({3}), frozenset({2, 3}), frozenset({1, 2})]
    with closing(DamageMeter(model, [batch], {})) as meter:
        whole = meter.num_nodes
        found = meter.measure(frozenset(), sets)
        runs = (meter.num_nodes - whole) / whole
    assert [damage.kl for damage in found] == [_alone(model, batch, each) for each in sets]
    assert len({damage.kl for damage in found}) == 3
    assert runs == 4 if is_shared else runs < 3.5


def _alone(model, batch, blocks):
    with closing(DamageMeter(model, [batch], {})) as meter:
        return meter.measure(blocks, [blocks])[0].kl


def test_an_interrupted_search_goes_on(model, plan, tmp_path, monkeypatch):
    notes = tmp_path / "plan.json.notes"

    def stop(done, _):
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ladderize.sensitivity(model, BATCHES, width=3, notes=notes, on_progress=stop)
    with notes.open("a") as file:
        file.write('{"blocks": [1, 2')  # as a killed process leaves it
    lines = notes.read_text().splitlines()
    measured = []
    real = DamageMeter.measure

    def measure_and_note(self, base, sets):
        measured.extend(sets)
        return real(self, base, sets)

    monkeypatch.setattr(DamageMeter, "measure", measure_and_note)
    found = ladderize.sensitivity(model, BATCHES, width=3, notes=notes)
    assert found == plan  # to the last bit
    known = {frozenset(json.loads(line)["blocks"]) for line in lines[1:-1]}
    assert len(known) > 8 and known.isdisjoint(measured)
    assert not notes.exists()


def test_notes_of_another_text_are_not_used(model, tmp_path):
    notes = tmp_path / "notes"
    notes.write_text('{"of": {"model": "another"}}\n{"blocks": [1], "kl": 77.0, "loss": 1.0}\n')
    found = ladderize.sensitivity(model, BATCHES[:1], width=1, notes=notes)
    assert found.blocks[1].kl < 77


def test_the_model_is_given_back(model):
    training = copy.deepcopy(model).train()
    training.model.layers[0].eval()
    modes = [module.training for module in training.modules()]
    ladderize.sensitivity(training, BATCHES[:1], width=1)
    assert [module.training for module in training.modules()] == modes
    ladder = ladderize.compile(training, lowering="eager").eval()
    standard = ladderize.restore(ladder)(**BATCHES[0]).logits
    torch.testing.assert_close(standard, model(**BATCHES[0]).logits, rtol=0, atol=0)


def test_refusals(model):
    with pytest.raises(LadderError) as told:
        ladderize.sensitivity(model, [], shares=[0.5, 1.5], blocks=[1], connectivity="farskip")
    assert [b.what for b in told.value.blockers] == [
        "a share of 1.5",
        "blocks= cannot be given, because blocks are the result",
        "connectivity='farskip': only ladders can be measured",
        "no batch",
    ]
    with pytest.raises(LadderError, match="No residual block was found"):
        ladderize.sensitivity(nn.Linear(8, 8), [{"input": torch.randn(2, 8)}])
    with pytest.raises(LadderError, match="This model is compiled"):
        ladderize.sensitivity(ladderize.compile(copy.deepcopy(model)), BATCHES)
    with pytest.raises(LadderError, match="No residual block was found"):
        ladderize.sensitivity(nn.Linear(8, 8), [{"input": torch.randn(2, 8)}], strict=False)
    ladder = copy.deepcopy(model)
    ladder.config.ladder = {"blocks": [1, 2], "staleness": 1, "version": 1}
    with pytest.raises(
        LadderError, match=r"is the checkpoint of a ladder: config\.json has blocks"
    ):
        ladderize.sensitivity(ladder, BATCHES)


# ---- the file


def test_a_plan_chooses_the_blocks(model, plan, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json())
    for option in ("blocks", "layers"):
        options = {option: f"{path}:60%", "lowering": "eager"}
        found = ladderize.compile(copy.deepcopy(model), **options)
        wanted = ladderize.compile(
            copy.deepcopy(model), blocks=plan.best(0.6).blocks, lowering="eager"
        )
        assert torch.equal(found(**BATCHES[0]).logits, wanted(**BATCHES[0]).logits)


def _changed(plan, **changes):
    return json.dumps({**plan.model_dump(), **changes})


def test_a_plan_of_another_model_is_refused(model, plan, tmp_path):
    path = tmp_path / "plan.json"
    shallow = language_model("llama")
    path.write_text(plan.model_dump_json())
    with pytest.raises(LadderError, match=r"of a model with 6 blocks \(Llama.*this one has 4"):
        ladderize.compile(shallow, blocks=f"{path}:50%", lowering="eager")(**BATCHES[0])
    blocks = [{**block.model_dump(), "layer": 0} for block in plan.blocks]
    path.write_text(_changed(plan, blocks=blocks, model="another one"))
    with pytest.raises(LadderError, match=r"is of another model \(another one\)"):
        ladderize.compile(copy.deepcopy(model), blocks=f"{path}:50%", lowering="eager")(
            **BATCHES[0]
        )


def test_a_mistaken_plan_is_refused_in_one_line(plan, tmp_path):
    path = tmp_path / "plan.json"
    texts = {
        plan.model_dump_json()[:-20]: "no plan of blocks, or is cut short",
        _changed(plan, sets=[]): "sets: List should have at least 1 item",
        _changed(plan, blocks=[], color=3): "blocks: List should .* color: Extra inputs",
        _changed(plan, staleness=2): "is of staleness 2, not 1",
        _changed(plan, sets=[{"blocks": [9], "share": 1.0, "kl": 1.0}]): "block 9 of 6",
        _changed(plan, sets=[{"blocks": [1], "share": 0.2, "kl": 1.0}]): "hide up to 20 %",
    }
    for text, reason in texts.items():
        path.write_text(text)
        with pytest.raises(LadderError, match=reason) as told:
            LadderConfig(blocks=f"{path}:50%")
        assert len(told.value.blockers) == 1 and "\n" not in told.value.blockers[0].what
    with pytest.raises(LadderError, match=r"nowhere.json cannot be read"):
        LadderConfig(layers="nowhere.json:50%")
    with pytest.raises(LadderError, match=r"'plan.json:150%' is not \"all\""):
        LadderConfig(blocks="plan.json:150%")


def test_the_best_set_for_a_share():
    def found(blocks, share, kl):
        return {"blocks": blocks, "share": share, "kl": kl}

    plan = BlockPlan.model_validate(
        {
            "model": "m",
            "staleness": 1,
            "tokens": 1,
            "standard_loss": None,
            "blocks": [{"module": "", "kind": "MLP", "layer": None, "share": 0.5}] * 3,
            "sets": [found([1], 0.5, 0.4), found([2], 0.5, 0.5), found([1, 2], 1.0, 0.3)],
            "references": {},
            "versions": {},
        }
    )
    assert plan.best(0.25).blocks == plan.best(1).blocks == [1, 2]  # more costs less here
    assert [each.blocks for each in plan.candidates(0.5, 5)] == [[1, 2], [1], [2]]
    healed = plan.healed({(1,): (0.2, 3.0), (2,): (0.1, 2.9)})
    assert healed.best(0.25).blocks == [2] and healed.best(0.25).healed_loss == 2.9
    assert healed.best(1).blocks == [1, 2]  # none of these was healed
    assert plan.sets[0].healed_kl is None


def test_a_run_without_blends_is_a_run():
    gm = torch.fx.symbolic_trace(nn.Linear(2, 2))
    x = torch.randn(1, 2)
    run = ReusingRun(gm)
    assert torch.equal(run(x), gm(x)) and run.num_nodes == 3
    assert Blends().values == {}
