"""Local parts are shared by all graphs of a model; full parameters can be freed and restored.

One rank suffices for what it keeps or refuses; values are those of real gloo ranks.
"""

import copy
import gc
import io
import weakref

import pytest
import torch
import torch.distributed as dist
from helpers.language_models import language_model
from helpers.ranks import mesh
from helpers.reads import HEAD

import ladderize
from ladderize import LadderError
from ladderize.frontends.mesh import release_parameters
from ladderize.frontends.mesh.local_parts import PARTS, Place
from ladderize.sharding.placement import Shard
from ladderize.testing import eager_ladder


def net(name="llama, tied"):
    """Of one layer, which is two blocks."""
    layers = "n_layer" if name == "gpt2" else "num_hidden_layers"
    return language_model(name, **{layers: 1})


def make(name="llama, tied", **options):
    model = net(name)
    settings = {"mesh": mesh(), "lowering": "eager", "dynamic": False} | options
    return ladderize.compile(model, **settings)


def logits(model, length=6):
    return model(input_ids=torch.arange(2 * length).reshape(2, length) % 60).logits


def whole_logits(name, model, length=6):
    """Those of the unsharded ladder, without tracing it."""
    with eager_ladder(model, HEAD[name]):
        return logits(model, length)


def full_bytes(model):
    return sum(p.untyped_storage().nbytes() for p in model.parameters())


def kept_parts(model):
    """How many local parts there are, and their bytes."""
    parts = [part.local for p in model.parameters() for part in PARTS.of(p).values()]
    return len(parts), sum(part.nbytes for part in parts)


def divided(model):
    return [p for p in model.parameters() if PARTS.places(p)]


@pytest.mark.usefixtures("first_of_two")
def test_graphs_cut_their_parts_themselves_and_share_those_that_a_release_leaves():
    model = make()
    with torch.no_grad():
        logits(model)
        logits(model, 9)  # another graph
        assert kept_parts(model) == (0, 0)
        full = sum(p.nbytes for p in divided(model))
        ladderize.release_full_parameters(model)
        for length in (6, 9):
            logits(model, length)
            assert kept_parts(model) == (8, full // 2)  # seven of the layer, the tied vocabulary


def run_once():
    model = make()
    with torch.no_grad():
        logits(model)
    ladderize.restore(model)
    return weakref.ref(model), len(divided(model)), len(PARTS._parts)


@pytest.mark.usefixtures("first_of_two")
def test_parts_live_no_longer_than_their_model():
    model, parameters, before = run_once()
    torch._dynamo.reset()
    gc.collect()
    assert parameters > 5
    assert model() is None
    assert len(PARTS._parts) <= before - parameters


def release_and_restore(name, lowering, dynamic):
    model = make(name, lowering=lowering, dynamic=dynamic)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        first = logits(model)
        bytes_before, shared = full_bytes(model), sum(p.nbytes for p in divided(model))
        freed = ladderize.release_full_parameters(model)
        left = full_bytes(model)
        other = logits(model, 9)  # a new shape, perhaps compiled anew
        ladderize.restore_full_parameters(model)
        same = all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    restored = logits(model, 9)
    gradient = torch.autograd.grad(restored.square().mean(), divided(model)[-1:])
    whole = net(name)
    with torch.no_grad():
        errors = [
            (first - whole_logits(name, whole)).abs().max().item(),
            (other - whole_logits(name, whole, 9)).abs().max().item(),
            (restored - other).abs().max().item(),
        ]
    return {
        "errors": errors,
        "freed": freed,
        "divided": shared,
        "gone": bytes_before - left,
        "after": full_bytes(model) - bytes_before,
        "same": same,
        "gradient": gradient[0].abs().max().item(),
    }


@pytest.mark.parametrize(
    ("name", "lowering", "dynamic"),
    [
        ("gpt2", "eager", False),
        pytest.param("gpt2", "eager", True, marks=pytest.mark.deep),
        pytest.param("llama, tied", "eager", False, marks=pytest.mark.deep),
        pytest.param("llama", "inductor", False, marks=pytest.mark.deep),
    ],
)
def test_release_and_restore(two_ranks, name, lowering, dynamic):
    """gpt2 has segmented parts: its [q|k|v] weight."""
    for found in two_ranks.run(release_and_restore, name, lowering, dynamic):
        assert max(found["errors"]) <= 1e-4
        assert found["freed"] == found["gone"] == found["divided"] > 0
        assert found["after"] == 0
        assert found["same"]
        assert found["gradient"] > 0


def written_then_released():
    model = make()
    with torch.no_grad():
        logits(model)
        model.lm_head.weight.mul_(3)
        ladderize.release_full_parameters(model)
        released = logits(model)
        ladderize.restore(model)
        return (logits(net()) - logits(model)).abs().max().item(), (
            released - logits(ladderize.compile(model, lowering="eager"))
        ).abs().max().item()


@pytest.mark.deep
def test_what_was_written_before_is_not_lost(two_ranks):
    for moved, error in two_ranks.run(written_then_released):
        assert moved > 1e-3
        assert error <= 1e-4


USES = {
    "state_dict": lambda model: model.state_dict(),
    "state_dict of a part": lambda model: model.model.layers[0].mlp.up_proj.state_dict(),
    "load_state_dict": lambda model: model.load_state_dict({}, strict=False),
    "save": lambda model: torch.save(model, io.BytesIO()),
    "save a parameter": lambda model: torch.save(model.lm_head.weight, io.BytesIO()),
    "deepcopy": copy.deepcopy,
    "train": lambda model: logits(model.requires_grad_()),
}


def uses_of_a_released_model():
    model = make()
    texts = {}
    with torch.no_grad():
        logits(model)
        ladderize.release_full_parameters(model)
    for name, use in USES.items():
        try:
            use(model)
            texts[name] = "no error"
        except LadderError as error:
            texts[name] = str(error)
    ladderize.restore(model)
    for name in set(USES) - {"train", "load_state_dict"}:
        USES[name](model)
    return texts


@pytest.mark.usefixtures("first_of_two")
def test_uses_of_released_parameters_raise():
    for name, text in uses_of_a_released_model().items():
        assert "ladderize.restore_full_parameters(model)" in text, name


def refusal(case):
    options = {"fullgraph": False} if case == "breaks" else {}
    options |= {"strict": False} if case == "not strict" else {}
    model = make(**options)
    with torch.no_grad():
        if case != "not run":
            logits(model)
        if case == "read whole":
            ladderize.compile(model, mesh=mesh(), lowering="eager", shard_vocabulary=False)
            logits(model)
    if case == "restored":
        ladderize.restore(model)
    before = full_bytes(model)
    try:
        with torch.set_grad_enabled(case == "gradients"):
            ladderize.release_full_parameters(model)
    except LadderError as error:
        assert full_bytes(model) == before
        return str(error)
    return "no error"


REASONS = {
    "breaks": "fullgraph=False",
    "not strict": "strict=False",
    "not run": "no graph of it has run",
    "gradients": "model.layers.0.mlp.up_proj.weight: it may be trained",
    "read whole": "model.embed_tokens.weight: a compiled graph reads it whole",
    "restored": "it was not compiled by ladderize.compile",
}


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize("case", REASONS)
def test_refusals(case):
    assert REASONS[case] in refusal(case)


def generated():
    model = make(dynamic=None)
    model.config.use_cache = False
    ids = torch.arange(10).reshape(2, 5)
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "use_cache": False}
    first = model.generate(ids, **how)
    with torch.no_grad():
        freed = ladderize.release_full_parameters(model)
    return freed, torch.equal(first, model.generate(ids, **how))


@pytest.mark.deep
def test_generate_from_the_parts_alone(two_ranks):
    for freed, same in two_ranks.run(generated):
        assert freed > 0
        assert same


def a_fused_weight_with_one_key_head():
    """A weight [q|k|v] whose k and v every rank holds whole: the largest change of it."""
    model = torch.nn.Linear(3, 8, bias=False).requires_grad_(False)
    before = model.weight.clone()
    placement = Shard(0, (4, 2, 2), whole=(1, 2))
    part = PARTS.get(
        model.weight, Place(placement, mesh().get_group().group_name, dist.get_rank(), 2)
    ).local
    freed = release_parameters.free(model)
    release_parameters.refill(model)
    return (model.weight - before).abs().max().item(), list(part.shape), freed


def test_what_every_rank_holds_whole_of_a_fused_weight_comes_back_too(two_ranks):
    for worst, shape, freed in two_ranks.run(a_fused_weight_with_one_key_head):
        assert shape == [6, 3]
        assert freed == 8 * 3 * 4
        assert worst == 0
