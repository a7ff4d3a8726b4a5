"""Sets of blocks are compared after a short heal, which changes their damage."""

import pytest
import torch
from helpers.healing_runs import texts, trained_model

import ladderize
from ladderize import LadderError
from ladderize.quality.runs.short_heals import heal_candidates


@pytest.fixture(scope="module")
def measured():
    model = trained_model()
    trained, held_out = (torch.stack([row["input_ids"] for row in part]) for part in texts())
    plan = ladderize.sensitivity(model, [{"input_ids": held_out}], shares=[0.5], width=2)
    return model, plan, trained, held_out


def test_candidates_are_healed_and_one_is_chosen(measured):
    model, plan, trained, held_out = measured
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = []
    healed = heal_candidates(
        plan,
        model,
        trained,
        held_out,
        shares=[0.5],
        tokens=40 * trained[:4].numel(),
        candidates=2,
        learning_rate=1e-2,
        on_progress=lambda *progress: told.append(progress),
    )
    candidates = plan.candidates(0.5, 2)
    found = {tuple(e.blocks): e for e in healed.sets if e.healed_kl is not None}
    assert {*found} == {tuple(each.blocks) for each in candidates}
    assert tuple(plan.references["last:50%"].blocks) in found
    assert all(each.healed_kl < 0.6 * each.kl for each in found.values())
    assert all(each.healed_loss < each.loss for each in found.values())
    assert healed.best(0.5).healed_kl == min(each.healed_kl for each in found.values())
    assert told[-1] == (len(found), len(found))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_too_little_text(measured):
    model, plan, trained, held_out = measured
    with pytest.raises(LadderError, match="too short: it has 2 sequences, but a batch needs 4"):
        heal_candidates(plan, model, trained[:2], held_out, shares=[0.5], tokens=100)
