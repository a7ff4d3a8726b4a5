"""Cut graphs: positions of cuts, and the values of the flat graph, on one and two ranks."""

from functools import partial

import pytest
import torch
from helpers.cached_decoder import EXAMPLE, Decoder
from helpers.cutting import cutting, difference, letters, lower_islands, without_names
from helpers.parallel_nets import make_ids, make_net, shard
from helpers.ranks import mesh
from helpers.sharded import MODELS

import ladderize
from ladderize import compat
from ladderize.backends.tensorrt.islands import islands_of


def compiled(net, dynamic=None, **options):
    options = {"lowering": "aot_eager", **options}
    return torch.compile(net, backend="ladderize", fullgraph=True, dynamic=dynamic, options=options)


def summary(cut):
    """The results of a rank: error, order, and islands by kind."""
    (gm,) = cut.graphs
    kinds = [hash(without_names(body)) for body in islands_of(gm).values()]
    return max(cut.differences), letters(gm), [kinds.index(kind) for kind in kinds]


def run_model(name, layers, lengths=(6,)):
    """With several `lengths` of dynamic length."""
    run = compiled(MODELS[name](layers=layers), mesh=mesh())
    with torch.no_grad(), cutting() as cut:
        for length in lengths:
            ids = torch.arange(2 * length).reshape(2, length) % 60
            if len(lengths) > 1:
                torch._dynamo.mark_dynamic(ids, 1)
            run(input_ids=ids)
    return summary(cut)


@pytest.mark.deep  # every run: the kinds of a small net
@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_model_over_two_ranks(name):
    """The embedding, 2 L blocks, two sums: L layers are 2 L + 3 islands of 6 or 7 kinds."""
    off, order, kinds = run_model(name, 3)
    assert off == 0
    assert order == "slw" + "sl" + "slw" * 5 + "sws"
    assert kinds == [0, 1, 2, 3, 4, 3, 4, 7, 7 if name == "bert" else 8]


@pytest.mark.deep
@pytest.mark.usefixtures("first_of_two")
def test_dynamic_shapes():
    off, order, _ = run_model("llama", 1, (6, 9))
    assert off == 0
    assert order == "slw" + "sl" + "slw" + "sws"


def run_net(way, layers):
    net = make_net(layers)
    run = compiled(net, mesh=mesh()) if way == "mesh" else compiled(shard(way, net, mesh()))
    with torch.no_grad(), cutting() as cut:
        run(make_ids())
    return summary(cut)


@pytest.mark.usefixtures("first_of_two")
def test_equal_layers_are_of_one_kind():
    """With the embedding over the ranks, and the logits."""
    off, order, kinds = run_net("mesh", 3)
    assert off == 0
    assert order == "slw" + "sl" + "slw" * 5 + "sws" + "gws"
    assert kinds == [0, 1, 2, 3, 4, 3, 4, 7, 8, 9]


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize(
    ("way", "order"),
    [
        ("dtensor", "sl" + "slw" * 3 + "sws" + "gws"),
        ("in_place", "sl" + "slw" * 3 + "sws"),
    ],
)
def test_ways_to_shard(way, order):
    off, found, _ = run_net(way, 2)
    assert off == 0
    assert found == order


def test_scatters_and_gathers_of_real_ranks(two_ranks):
    """The embedding's; the gathers of both blocks, which read it; their scatters; the head's."""
    for off, order, _ in two_ranks.run(run_net, "sequence", 1):
        assert off == 0
        assert order == "srw" + "sgsg" + "wsr" + "wsr" + "wsws" + "gwsgws"


def run_cached():
    module = ladderize.parallelize(Decoder(), mesh(), EXAMPLE)
    run = compiled(module)
    with torch.no_grad(), cutting() as cut:
        for position in range(2):
            run(torch.tensor([[5, 7, 1]]), torch.arange(3) + position)
    return summary(cut)


@pytest.mark.usefixtures("first_of_two")
def test_caches_are_written_outside():
    off, order, _ = run_cached()
    assert off == 0
    assert order == "slw" + "sl" + "slw" * 3 + "sws" + "gws" + "cccc"


def by_inductor(ran, name, body):
    """Compiled at the first call, for the inputs of that call."""
    made = []

    def run(*args):
        if not made:
            made.append(compat.inductor_compile(body, args, {}))
        ran.append(name)
        return made[0](*args)

    return run


@pytest.mark.deep
@pytest.mark.usefixtures("first_of_two")
def test_islands_compiled_by_inductor():
    run = compiled(MODELS["llama"](layers=1), mesh=mesh())
    with torch.no_grad(), cutting() as cut:
        run(input_ids=torch.arange(12).reshape(2, 6))
        (gm,), (inputs,) = cut.graphs, cut.calls
        expected = gm(*inputs)
        ran = []
        lower_islands(gm, partial(by_inductor, ran))
        assert difference(gm(*inputs), expected) <= 1e-5
    assert ran == [f"island_{i}" for i in range(5)]
    assert letters(gm) == "slw" + "sl" + "slw" + "sws"
