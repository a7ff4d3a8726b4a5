"""A call on a mesh costs no more than a call without one: weights stay static and unchecked."""

import sys
from collections import Counter
from unittest.mock import patch

import pytest
import torch
from helpers.language_models import language_model
from helpers.parallel_nets import make_ids, make_net, shard
from helpers.ranks import mesh
from torch._inductor import compile_fx

import ladderize

IDS = torch.arange(12).reshape(2, 6)

pytestmark = pytest.mark.usefixtures("first_of_two")


def llama(layers=1):
    return language_model("llama", num_hidden_layers=layers)


def compiled(model, **options):
    return torch.compile(model, backend="ladderize", fullgraph=True, options=options)


def num_parameters(model):
    return len(list(model.parameters()))


def inputs_of(run, *args, gradients=False, **kwargs):
    """How many inputs Inductor is given for the forward, and how many of them are static."""
    seen = []
    inner = compile_fx.compile_fx_inner

    def watch(gm, inputs, **settings):
        seen.append((len(inputs), len(settings.get("static_input_idxs") or ())))
        return inner(gm, inputs, **settings)

    with patch.object(compile_fx, "compile_fx_inner", watch), torch.set_grad_enabled(gradients):
        run(*args, **kwargs)
    return seen[0]


@pytest.mark.parametrize("gradients", [False, True])
def test_every_weight_is_static_with_a_mesh(gradients):
    """The index of this rank's first word too; the frequencies of the rotary embedding are one."""
    model = llama()
    run = compiled(model, mesh=mesh())
    inputs, static = inputs_of(run, input_ids=IDS, use_cache=False, gradients=gradients)
    assert static == num_parameters(model) + 2
    assert inputs == static + 1


def test_every_weight_is_static_in_a_model_that_is_sharded_already():
    net = shard("functional", make_net(layers=1), mesh())
    inputs, static = inputs_of(compiled(net), make_ids())
    assert static == num_parameters(net) == inputs - 1


def test_every_weight_is_static_in_a_shard():
    model = llama()
    model.config.use_cache = False
    ours = ladderize.parallelize(model, mesh(), (IDS,))
    inputs, static = inputs_of(compiled(ours), IDS)
    assert static >= num_parameters(ours)
    assert inputs == static + 1


def python_calls(layers):
    """Calls of this package's functions in one call of a compiled model."""
    run = compiled(llama(layers), mesh=mesh(), lowering="eager")
    calls = Counter()

    def count(frame, event, _):
        if event == "call" and "/ladderize/" in frame.f_code.co_filename:
            calls[frame.f_code.co_qualname] += 1

    with torch.no_grad():
        run(input_ids=IDS, use_cache=False)
        sys.setprofile(count)
        run(input_ids=IDS, use_cache=False)
        sys.setprofile(None)
    return {name: num for name, num in calls.items() if "LocalInputs" in name or "Part" in name}


def test_a_call_does_not_look_at_the_weights():
    found = python_calls(1)
    assert found == python_calls(2)
    assert found == {"LocalInputs.feed.<locals>.call": 1}
