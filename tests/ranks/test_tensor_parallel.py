"""`options={"mesh": mesh}`: values, order, count, agreement, refusals.

Emitted code and refusals are tested on one rank, values and agreement on real gloo ranks.
"""

import warnings
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from helpers.graphs import Wrapped
from helpers.language_models import mixture
from helpers.ranks import mesh
from helpers.reads import BODY, HEAD
from helpers.sharded import MODELS

from ladderize import LadderError, LadderWarning, compat
from ladderize.backends.emitted import (
    EventKind,
    find_disorder,
    find_races,
    order_string,
    read_events,
)
from ladderize.testing import eager_ladder
from ladderize.testing.emitted_code import record_emitted_code

INDUCTOR = {"lowering": "inductor", "verify": "code"}


def compiled(model, dynamic=None, **options):
    return torch.compile(
        model, backend="ladderize", fullgraph=True, dynamic=dynamic, options=options
    )


def ids(batch=2, length=6, dynamic=False):
    """Token ids; only the length is dynamic, because two symbols triple the time of a trace."""
    made = torch.arange(batch * length).reshape(batch, length) % 60
    if dynamic:
        torch._dynamo.mark_dynamic(made, 1)
    return made


def forward(model, ids):
    return model(input_ids=ids)[0]


def whole(name, model, ids, staleness=1):
    """The result of the unsharded ladder."""
    with eager_ladder(model, BODY[name], staleness=staleness):
        return forward(model, ids)


def of_experts():
    """Largest difference of a mixture whose experts are whole on each rank to one rank's ladder."""
    model, call = mixture("mixtral"), {"input_ids": ids(), "use_cache": False}
    run = compiled(model, mesh=mesh(), lowering="eager", experts="expert")
    with torch.no_grad(), eager_ladder(model, HEAD["llama"]):
        expected = model(**call).logits
    with torch.no_grad():
        return (run(**call).logits - expected).abs().max().item()


def test_whole_experts_on_two_ranks(two_ranks):
    assert max(two_ranks.run(of_experts)) <= 1e-4


def difference(name, lowering, dynamic, options):
    """Largest difference of the sharded ladder to the unsharded one, and to the standard model."""
    model = MODELS[name](**options)
    worst = 0.0
    run = compiled(model, dynamic=None if dynamic else False, mesh=mesh(), lowering=lowering)
    with torch.no_grad():
        for length in [6, 9] if dynamic else [6]:
            expected = whole(name, model, ids(2, length))
            found = run(input_ids=ids(2, length, dynamic))[0]
            worst = max(worst, (found - expected).abs().max().item())
        standard = (forward(model, ids(2, length)) - found).abs().max().item()
    return worst, standard


def deep(*case):
    return pytest.param(*case, marks=pytest.mark.deep)


@pytest.mark.parametrize(
    ("name", "options", "dynamic"),
    [
        ("llama", {"kv": 2, "layers": 1}, True),
        ("gpt2", {"layers": 1}, False),
        deep("bert", {}, False),
        *(deep("llama", {"kv": kv}, dynamic) for kv in (4, 1) for dynamic in (False, True)),
        *(deep("llama", {"kv": 2}, dynamic) for dynamic in (False, True)),
        *(deep("gpt2", {}, dynamic) for dynamic in (False, True)),
        deep("bert", {}, True),
    ],
)
def test_two_ranks_equal_one(two_ranks, name, options, dynamic):
    for worst, standard in two_ranks.run(difference, name, "aot_eager", dynamic, options):
        assert worst <= 1e-4
        assert standard > 1e-3  # it is a ladder, not the standard model


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"kv": 2}),
        *((name, {}) for name in ("llama", "gpt2", "bert")),
        ("llama", {"kv": 1}),
    ],
)
def test_four_ranks_equal_one(four_ranks, name, options):
    for worst, standard in four_ranks.run(difference, name, "eager", False, options):
        assert worst <= 1e-4
        assert standard > 1e-3


def emitted(layers, staleness, grad, dynamic=False):
    """What Inductor emits for a Llama: its compiled call, the result of it, and the programs."""
    model = MODELS["llama"](layers=layers, kv=2)
    run = compiled(model, staleness=staleness, mesh=mesh(), **INDUCTOR)
    with torch.set_grad_enabled(grad), record_emitted_code() as sources:
        found = run(input_ids=ids(dynamic=dynamic))[0]
        if grad:
            found.square().mean().backward()
    return model, found, list(sources)


def letters(source):
    """The order of launches and waits: `l` and `w`."""
    short = {EventKind.LAUNCH: "l", EventKind.WAIT: "w"}
    return "".join(short.get(event.kind, "") for event in read_events(source).events)


EMBEDDING = "lw"  # every block needs its reduction: it is waited for at once


@pytest.mark.usefixtures("first_of_two")
def test_inductor_hides_every_wait_but_the_last():
    _, _, (source,) = emitted(1, 1, False)
    assert letters(source) == EMBEDDING + "l" + "lw" + "w"
    program = read_events(source)
    assert not find_races(program)
    assert not find_disorder(program)
    assert "AR_0" in order_string(program)


def trained(lowering):
    """Errors of the values and of two gradients on this rank."""
    model = MODELS["llama"](layers=1, kv=2)
    found = compiled(model, mesh=mesh(), lowering=lowering)(input_ids=ids())[0]
    found.square().mean().backward()
    ours = [model.layers[0].mlp.down_proj.weight.grad, model.layers[0].input_layernorm.weight.grad]
    model.zero_grad()
    expected = whole("llama", model, ids())
    expected.square().mean().backward()
    theirs = model.layers[0].mlp.down_proj.weight.grad, model.layers[0].input_layernorm.weight.grad
    part = theirs[0].shape[1] // dist.get_world_size()
    mine = slice(dist.get_rank() * part, (dist.get_rank() + 1) * part)
    differences = [found - expected, (ours[0] - theirs[0])[:, mine], ours[1] - theirs[1]]
    return [each.abs().max().item() for each in differences]


@pytest.mark.parametrize("lowering", ["eager", deep("inductor")])
def test_gradients_equal_the_eager_ladders(two_ranks, lowering):
    for errors in two_ranks.run(trained, lowering):
        assert max(errors) <= 1e-4


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize("layers", [1, deep(2)])
def test_inductor_hides_waits_in_the_backward_too(layers):
    _, _, (forward_source, backward_source) = emitted(layers, 1, True)
    assert letters(forward_source) == EMBEDDING + "l" + "lw" * (2 * layers - 1) + "w"
    order = letters(backward_source)
    assert order.count("l") == order.count("w") == 2 * layers
    assert "lwlw" in order or layers == 1
    assert order.startswith("llw")
    assert not find_disorder(read_events(backward_source))


@pytest.mark.deep
@pytest.mark.usefixtures("first_of_two")
def test_staleness_two_hides_behind_two_blocks():
    _, _, (source,) = emitted(2, 2, False)
    assert letters(source) == EMBEDDING + "ll" + "lw" * 2 + "ww"


@pytest.mark.deep
@pytest.mark.usefixtures("first_of_two")
def test_the_standard_net_waits_at_once():
    _, _, (source,) = emitted(1, 0, False)
    assert letters(source) == EMBEDDING + "lw" * 2


@pytest.mark.deep
@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize(
    ("layers", "grad", "dynamic"),
    [pytest.param(2, True, False, marks=pytest.mark.deep), (1, False, True)],
)
def test_the_order_survives_without_control_deps(layers, grad, dynamic):
    with patch.object(compat, "has_control_deps", lambda: False):
        model, found, sources = emitted(layers, 1, grad, dynamic)
    assert len(sources) == 1 + grad
    for source in sources:
        embedding = EMBEDDING if source is sources[0] else ""
        hidden = 2 * layers - 1
        assert letters(source) == embedding + "l" + "lw" * hidden + "w"
        program = read_events(source)
        assert not find_races(program)
        assert not find_disorder(program)
        waits = [e.name for e in program.events if e.kind is EventKind.WAIT]
        opaque = waits[len(embedding) // 2 : -1]
        assert len(opaque) == hidden
        assert set(opaque) <= {"wait_add", "wait_after"}
    assert "wait_add.default(" in sources[0]
    # Without the other rank its sums are wrong, but no other than those of the graph itself.
    torch._dynamo.reset()
    with torch.no_grad():
        expected = compiled(model, mesh=mesh(), lowering="eager")(input_ids=ids())[0]
    assert (found - expected).abs().max() <= 1e-4


def two_linears(parts, x):
    first, *branches, last = parts
    x = first(x)
    for up, down in zip(branches[::2], branches[1::2], strict=True):
        x = x + down(torch.relu(up(torch.tanh(x))))
    return last(x)


def small(blocks=2, width=8):
    """A model that is quick to trace; with an odd width nothing divides over two ranks."""
    return Wrapped(two_linears, 2 * blocks + 2, width)


def refusal(model, *args, **config):
    """The error of compiling `model` over the ranks, if any."""
    args = args or (torch.ones(2, model.parts[0].in_features),)
    try:
        with torch.no_grad():
            compiled(model, mesh=mesh(), lowering="eager", **config)(*args)
    except LadderError as error:
        return str(error)
    return "no error"


ODD_HEADS = {"heads": 3, "kv": 3, "hidden_size": 24, "layers": 1}


@pytest.mark.usefixtures("first_of_two")
def test_if_nothing_divides_all_is_listed():
    text = refusal(MODELS["llama"](**ODD_HEADS, intermediate_size=33), ids())
    assert "No branch can be sharded over 2 ranks" in text
    assert text.count("3 heads") == 3
    assert text.count("33 entries") == 2
    assert "layers.0.self_attn" in text
    assert "modeling_llama.py:" in text


def partly_whole():
    """3 heads do not divide, the MLPs do: the error and what is said."""
    model = MODELS["llama"](**ODD_HEADS)
    run = compiled(model, mesh=mesh(), lowering="eager")
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = (run(input_ids=ids())[0] - whole("llama", model, ids())).abs().max().item()
    return error, [str(w.message) for w in caught if issubclass(w.category, LadderWarning)]


def test_heads_that_do_not_divide_stay_whole_and_are_all_listed(two_ranks):
    for error, texts in two_ranks.run(partly_whole):
        assert error <= 1e-4
        (text,) = texts
        assert "Not all is divided over 2 ranks" in text
        assert text.count("3 heads") == 3
        assert text.count("branch: ") == 1
        assert text.count("bytes and") == 1
        assert "layers.0.self_attn" in text
        assert "modeling_llama.py:" in text


def quiet_fallback():
    model, x = small(width=7), torch.randn(2, 7)
    run = compiled(model, mesh=mesh(), lowering="eager", strict=False)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = (run(x) - model(x)).abs().max().item()
    return error, sum(w.category is LadderWarning for w in caught)


def test_not_strict_compiles_the_standard_net_on_every_rank(two_ranks):
    assert two_ranks.run(quiet_fallback) == [(0.0, 1)] * 2


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad


def doubled(parts, x):
    for up, down in ((0, 1), (2, 3)):
        x = x + parts[down](Doubling.apply(parts[up](torch.tanh(x))))
    return x


@pytest.mark.usefixtures("first_of_two")
def test_the_gradient_of_an_autograd_function_is_not_lost_silently():
    run = compiled(Wrapped(doubled), mesh=mesh(), lowering="eager", expect_blocks=2)
    with pytest.raises(LadderError, match="would be lost in sharding") as caught:
        run(torch.ones(2, 8))
    text = str(caught.value)
    assert text.count("torch.autograd.Function (") == 1  # both are of one line
    assert "test_tensor_parallel.py:" in text
    with torch.no_grad():
        assert run(torch.ones(2, 8)).shape == (2, 8)
