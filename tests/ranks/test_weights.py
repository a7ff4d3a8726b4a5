"""A model on a mesh uses its current weights, however they were written."""

import pytest
import torch
from helpers.language_models import language_model
from helpers.ranks import mesh
from helpers.reads import HEAD

import ladderize
from ladderize.testing import eager_ladder


def in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)


def through_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def other_memory(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.9


def casts(model):
    model.to(torch.float64).to(torch.float32)
    model.load_state_dict({name: 0.9 * value for name, value in model.state_dict().items()})


def through_data_of_fused_weights(model):
    through_data(model)
    ladderize.refresh(model)


CHANGES = {
    "llama": (in_place, through_data, other_memory, casts),
    "gpt2": (other_memory, casts, through_data_of_fused_weights),  # [q|k|v] is one weight
}
ONE_LAYER = {"llama": {"num_hidden_layers": 1}, "gpt2": {"n_layer": 1}}


def errors_after_changes(name):
    """How far the outputs move with each change, and how far they are from the eager ladder."""
    whole, of_ranks = (language_model(name, **ONE_LAYER[name]) for _ in range(2))
    model = ladderize.compile(of_ranks, mesh=mesh(), lowering="eager")
    ids = torch.arange(12).reshape(2, 6)
    found = []
    with torch.no_grad():
        last = model(input_ids=ids).logits
        for change in CHANGES[name]:
            change(model)
            change(whole)
            logits = model(input_ids=ids).logits
            with eager_ladder(whole, HEAD[name]):
                expected = whole(input_ids=ids).logits
            moved, last = (logits - last).abs().max().item(), logits
            found.append((moved, (logits - expected).abs().max().item()))
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_weights_on_a_mesh_follow_the_model(two_ranks, name):
    for found in two_ranks.run(errors_after_changes, name):
        assert len(found) == len(CHANGES[name])
        for moved, error in found:
            assert moved > 1e-3
            assert error <= 1e-4
