"""Training models that are already sharded, on two ranks, against the unsharded eager ladder."""

from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from helpers.parallel_nets import (
    COLUMNS,
    ROWS,
    eager_ladder,
    gradient_errors,
    make_net,
    shard,
)
from helpers.parallel_steps import (
    adamw,
    compiled,
    largest_difference,
    loss_of,
    make_batch,
    parameter_error,
    train,
)
from helpers.ranks import mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm
from torch.profiler import profile
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

from ladderize.backends.emitted import EventKind, find_disorder, find_races, read_events
from ladderize.testing.emitted_code import record_emitted_code

EXACT = 1e-9  # the nets are float64


def nets(way, layers=2):
    """The sharded model of this rank, and the whole model."""
    return shard(way, make_net(layers).double(), mesh()), make_net(layers).double()


def worst(net, whole):
    return max(gradient_errors(net, whole, mesh()).values())


# -- steps of an optimizer


def learnt(way):
    """Errors of the first gradients, 10 losses and the parameters; how far off the standard is."""
    net, whole = nets(way, layers=1)
    run, ladder, standard = compiled(net), partial(eager_ladder, whole), make_net(1).double()
    for each in (run, ladder):
        loss_of(each, make_batch()).backward()
    gradients = worst(net, whole)
    found, wanted = train(net, run, 10), train(whole, ladder, 10)
    errors = gradients, largest_difference(found, wanted), parameter_error(net, whole, mesh())
    return errors, largest_difference(train(standard, standard, 10), wanted)


@pytest.mark.parametrize(
    "way", [*(pytest.param(w, marks=pytest.mark.deep) for w in ("dtensor", "sequence")), "megatron"]
)
def test_adamw_steps_equal_the_eager_ladders(two_ranks, way):
    for errors, standard in two_ranks.run(learnt, way):
        assert max(errors) <= EXACT
        assert standard > 1e-3  # it is a ladder, not the standard model


def clipped(way):
    """Errors of the norm and of the parameters after three micro-batches, clipped, and a step."""
    net, whole = nets(way, layers=1)
    run, ladder = compiled(net), partial(eager_ladder, whole)
    for step in range(3):
        for each in (run, ladder):
            (loss_of(each, make_batch(step)) / 3).backward()
    wanted = clip_grad_norm_(whole.parameters(), 0.1)
    if way == "sequence":
        found = clip_grad_norm_(net.parameters(), 0.1)  # all of them are DTensors
    else:
        found = clip_kinds_apart(list(net.parameters()), 0.1)
    if isinstance(found, DTensor):
        found = found.full_tensor()
    for each in (net, whole):
        adamw(each).step()
    return abs(found - wanted).item(), parameter_error(net, whole, mesh()), wanted.item()


def clip_kinds_apart(parameters, max_norm):
    """`clip_grad_norm_`, which refuses DTensors next to plain tensors (torch 2.13)."""
    split = [p for p in parameters if isinstance(p, DTensor)]
    plain = [p for p in parameters if not isinstance(p, DTensor)]
    norms = [get_total_norm([p.grad for p in kind]) for kind in (split, plain)]
    total = torch.hypot(norms[0].full_tensor(), norms[1])
    for kind in (split, plain):
        clip_grads_with_norm_(kind, max_norm, total)
    return total


DEEP = pytest.mark.deep
OLD = TorchVersion(torch.__version__) < (2, 13)
ALL_DTENSORS = pytest.mark.skipif(OLD, reason="clip_grad_norm_ of DTensors is wrong, eager too")
FLOAT64 = pytest.mark.skipif(OLD, reason="Inductor's attention mixes up float64 and float32")


@pytest.mark.parametrize("way", ["dtensor", pytest.param("sequence", marks=[ALL_DTENSORS, DEEP])])
def test_accumulated_and_clipped_gradients(two_ranks, way):
    for norm_error, error, norm in two_ranks.run(clipped, way):
        assert norm > 0.2  # clipped by it
        assert norm_error <= EXACT
        assert error <= EXACT


# -- Inductor


def emitted(way):
    """The models with gradients, the letters of each emitted program, and its faults."""
    net, whole = nets(way)
    run = compiled(net, lowering="inductor", verify="code")
    with record_emitted_code() as sources:
        loss_of(run, make_batch()).backward()
    programs = [read_events(source) for source in sources]
    faults = [str(found) for p in programs for found in (*find_races(p), *find_disorder(p))]
    return (net, whole), [letters(program) for program in programs], faults


def emitted_and_whole(way):
    """The largest error of the gradients, and what was emitted."""
    (net, whole), *seen = emitted(way)
    loss_of(partial(eager_ladder, whole), make_batch()).backward()
    return worst(net, whole), *seen


def letters(program):
    """The order of launches and waits."""
    short = {EventKind.LAUNCH: "l", EventKind.WAIT: "w"}
    return "".join(short.get(event.kind, "") for event in program.events)


ORDERS = ["l" + "lw" * 3 + "w"] * 2  # four blocks, each with one in a direction


@FLOAT64
@pytest.mark.usefixtures("first_of_two")
def test_inductor_hides_waits_behind_the_next_block():
    assert emitted("functions")[1:] == (ORDERS, [])


@DEEP
@FLOAT64
def test_inductor_trains_as_the_eager_ladder(two_ranks):
    for error, *seen in two_ranks.run(emitted_and_whole, "functions"):
        assert error <= EXACT
        assert seen == [ORDERS, []]


@DEEP
@FLOAT64
def test_inductor_hides_the_three_waits_of_q_k_v(two_ranks):
    """A DTensor sums the gradient of its input in each projection: three times ahead of q, k, v."""
    for error, (forward, backward), faults in two_ranks.run(emitted_and_whole, "dtensor"):
        assert error <= EXACT
        assert not faults
        head = "lw"  # which everything else needs
        assert forward == "l" + "lw" * 3 + "w" + head
        mlp, attention = "l", "lll"
        assert backward == head + mlp + attention + "w" + mlp + "www" + attention + "w" + "www"


# -- gradient checkpointing


def spelled_out_attention(q, k, v, is_causal):
    assert is_causal
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ v


def checkpointed(way, options, backend="ladderize", spell_out=False):
    """The largest error of the gradients, and the number of all-reduces in a step."""
    net, whole = nets(way, layers=1)
    for layer in net.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    run = torch.compile(net, backend=backend, fullgraph=True, options=options)
    attention = spelled_out_attention if spell_out else F.scaled_dot_product_attention
    with patch.object(F, "scaled_dot_product_attention", attention):
        loss_of(run, make_batch()).backward()
        loss_of(partial(eager_ladder, whole), make_batch()).backward()
        error = worst(net, whole)
        with profile() as seen:
            loss_of(run, make_batch()).backward()
    return error, [event.name for event in seen.events()].count("_c10d_functional::all_reduce")


CHECKPOINTED = [  # the last is the number of all-reduces in a step that computes nothing again
    ("functions", "aot_eager", False, 4),
    pytest.param("dtensor", "aot_eager", True, 7, marks=DEEP),
    pytest.param("dtensor", "eager", False, 7, marks=DEEP),
]


@pytest.mark.parametrize(("way", "lowering", "spell_out", "fewer"), CHECKPOINTED)
def test_checkpointed_layers(two_ranks, way, lowering, spell_out, fewer):
    options = {"lowering": lowering}
    for error, count in two_ranks.run(checkpointed, way, options, "ladderize", spell_out):
        assert error <= EXACT
        # The branches are computed again in the backward; 2.11 keeps what was reduced.
        assert count > fewer or OLD


@DEEP  # every run: the refusal, in test_sharded_refusals.py
def test_checkpointed_dtensors_are_refused_where_torch_fails(two_ranks):
    """torch 2.13, on a CPU: it takes a DeviceMesh that it saves for a tensor."""
    alone = two_ranks.outcomes(checkpointed, "dtensor", None, "aot_eager")
    ours = two_ranks.outcomes(checkpointed, "dtensor", {"lowering": "aot_eager"})
    for (kind, text), (our_kind, found) in zip(alone, ours, strict=True):
        assert kind == our_kind
        if kind == "ok":
            assert found[0] <= EXACT
        else:
            assert "DeviceMesh" in text
            assert "cannot train checkpointed layers" in found
            assert found.count("scaled_dot_product_attention (layers.") == 1


# -- a loss over logits that are sharded


class WithLoss(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, ids, targets):
        return loss_of(self.net, (ids, targets))


def loss_in_parallel(inside):
    """Errors of the loss and of the gradients; no rank holds all the logits."""
    net, whole = make_net(1).double(), make_net(1).double()
    plan = {"head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)}
    for i in range(len(net.layers)):
        plan |= {f"layers.{i}.{name}": ColwiseParallel() for name in COLUMNS}
        plan |= {f"layers.{i}.{name}": RowwiseParallel() for name in ROWS}
    parallelize_module(net, mesh(), plan)
    ids, targets = make_batch()
    wanted = loss_of(partial(eager_ladder, whole), (ids, targets))
    wanted.backward()
    with loss_parallel():
        if inside:
            found = compiled(WithLoss(net))(ids, targets)
        else:
            logits = compiled(net)(ids)
            assert logits.placements == (Shard(2),)
            found = loss_of(lambda _: logits, (ids, targets))
        found.backward()
    return abs(found.full_tensor() - wanted).item(), worst(net, whole)


@pytest.mark.parametrize("inside", [pytest.param(False, marks=DEEP), True])
def test_loss_parallel(two_ranks, inside):
    for errors in two_ranks.run(loss_in_parallel, inside):
        assert max(errors) <= EXACT
