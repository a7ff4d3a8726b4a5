"""Sharded models that would hang or train wrongly are refused, with place and cure."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.parallel_nets import eager_ladder, make_ids, make_net, shard
from helpers.ranks import mesh
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

from ladderize import LadderError, compat

OPTIONS = {"lowering": "eager"}


def refusal(net, ids, fullgraph=True, **options):
    """The error of compiling `net`: its type, text and notes."""
    run = torch.compile(
        net, backend="ladderize", fullgraph=fullgraph, options={**OPTIONS, **options}
    )
    try:
        run(ids)
    except Exception as error:
        return type(error).__name__, "\n".join([str(error), *getattr(error, "__notes__", [])])
    return "no error", ""


# ---- collectives that train wrongly ----------------------------------------------------------


def refused_ends(way, grad):
    net = shard(way, make_net(layers=1), mesh())
    with torch.set_grad_enabled(grad):
        return refusal(net, make_ids())


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize("way", ["in_place", "functional"])
def test_an_all_reduce_that_a_gradient_flows_through_names_its_line(way):
    source = (Path(__file__).parents[1] / "helpers" / "parallel_nets.py").read_text().splitlines()
    line = next(i for i, text in enumerate(source, 1) if f"def _all_reduce_{way}" in text) + 1
    kind, text = refused_ends(way, True)
    assert kind == "LadderError"
    assert text.count("all_reduce of a value that needs a gradient") == 2
    assert len(re.findall(rf"parallel_nets\.py:{line}\)", text)) == 2
    assert "layers.0.mlp" in text
    assert "reduce_from_ranks" in text
    assert "torch.no_grad()" in text
    torch._dynamo.reset()
    assert refused_ends(way, False) == ("no error", "")


@pytest.mark.deep
def test_it_would_have_trained_wrongly(two_ranks):
    """The claim behind the error: plain torch.compile's gradient is not eager mode's."""
    for plain, functions in two_ranks.run(gradients_by_plain_compile):
        assert plain > 1e-3
        assert functions <= 1e-6


def gradients_by_plain_compile():
    errors = []
    for way in ("in_place", "functions"):
        grads = []
        for backend in (None, "aot_eager"):
            net = shard(way, make_net(layers=1), mesh())
            run = net if backend is None else torch.compile(net, backend=backend)
            run(make_ids()).square().mean().backward()
            grads.append(net.layers[0].mlp.branch.up.weight.grad)
        errors.append((grads[0] - grads[1]).abs().max().item())
    return errors


@pytest.mark.usefixtures("first_of_two")
def test_an_all_reduce_without_a_gradient_is_let_through():
    """An all-reduce of a value without gradient is allowed."""

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = shard("ladderize", make_net(layers=2), mesh())

        def forward(self, ids):
            logits = self.net(ids)
            largest = logits.detach().abs().max()
            dist.all_reduce(largest)
            return logits, largest

    assert refusal(Watched(), make_ids()) == ("no error", "")


# ---- what Dynamo cannot take up --------------------------------------------------------------

SCRIPT = """
import os, sys, traceback
sys.path.insert(0, {tests!r})
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from helpers.parallel_nets import make_ids, make_net, shard

def refused(way, fullgraph):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    net = make_net(layers=1)
    if way == "fsdp":
        for layer in net.layers:
            fully_shard(layer, mesh=mesh)
    else:
        net = shard(way, net, mesh)
    options = {{"lowering": "eager"}}
    torch.compile(net, backend="ladderize", fullgraph=fullgraph, options=options)(make_ids())

for case in {cases}:
    if os.fork() == 0:
        try:
            refused(*case)
        except Exception:
            print(traceback.format_exc(), end="next", flush=True)
        os._exit(0)
    os.wait()
"""


NOT_TAKEN_UP = {
    "async": ("async_op=True hides its wait", "leave out async_op"),
    "nn": ("torch.distributed.nn.functional", "reduce_from_ranks"),
    "fsdp": ("fully_shard on a part of the model", "on the whole model only"),
}

CASES = [
    [("async", False), ("nn", True), ("fsdp", True)],
    *(pytest.param([(w, f)], marks=pytest.mark.deep) for w in NOT_TAKEN_UP for f in (True, False)),
]


@pytest.mark.parametrize("cases", CASES)
def test_what_dynamo_cannot_take_up_says_what_to_write_instead(cases):
    """Each in a separate process that imports only torch, as a user's script."""
    code = SCRIPT.format(tests=str(Path(__file__).parents[1]), cases=cases)
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    *errors, _ = ran.stdout.split("next")
    for (way, _), error in zip(cases, errors, strict=True):
        what, cure = NOT_TAKEN_UP[way]
        assert what in error
        assert cure in error
        if way == "async":
            assert "parallel_nets.py" in error


@pytest.mark.usefixtures("first_of_two")
def test_buckets_of_ddp_that_cut_the_stream_are_refused_with_the_cure():
    """Two buckets: the first is of 1 MiB whatever the caller says."""
    wide = make_net(layers=2, width=256, inner=512)
    run = torch.compile(wide, backend="ladderize", options=OPTIONS)
    net = nn.parallel.DistributedDataParallel(run)
    with pytest.raises(LadderError, match="one graph for each bucket") as caught:
        net(make_ids())
    assert "torch._dynamo.config.optimize_ddp = False" in str(caught.value)
    with torch._dynamo.config.patch(optimize_ddp=False):
        torch._dynamo.reset()
        assert (net(make_ids()) - eager_ladder(wide, make_ids())).abs().max() <= 1e-4


def checkpointed(lowering):
    net = shard("dtensor", make_net(layers=1), mesh())
    for layer in net.layers:
        layer.forward = lambda x, run=layer.forward: checkpoint(run, x, use_reentrant=False)
    return refusal(net, make_ids(), lowering=lowering)


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.skipif(
    not compat.saves_random_states_behind_meshes(), reason="only torch 2.13 mixes them up"
)
def test_checkpointed_dtensors_with_random_states_are_refused_before_they_fail():
    kind, text = checkpointed("aot_eager")
    assert kind == "LadderError"
    assert text.count("scaled_dot_product_attention (") == 1
    assert "parallel_nets.py:" in text
    assert "lowering='eager'" in text
    torch._dynamo.reset()
    assert checkpointed("eager") == ("no error", "")


# ---- ranks that differ -----------------------------------------------------------------------


def differing(difference):
    """Rank 1 compiles something else, as the name of the difference says."""
    is_other = dist.get_rank() == 1
    net = make_net(layers=3 if is_other and difference == "layers" else 2)
    ids = make_ids(length=9 if is_other and difference == "length" else 8)
    options = {}
    if is_other and difference == "op":
        net.layers[1].norm2 = nn.Sequential(net.layers[1].norm2, nn.Tanh())
    if is_other and difference == "options":
        options = {"layers": [1]}
    if is_other and difference == "refused":
        options = {"expect_blocks": 5}
    # parallelize_module would hang itself over nets that differ: it scatters rank 0's weights.
    way = "dtensor" if difference == "length" else "functions"
    return refusal(shard(way, net, mesh()), ids, **options)


@pytest.mark.parametrize(
    ("difference", "shown"),
    [
        ("length", "float32[2, 9"),
        ("op", "+tanh"),
        # Options and refusals of one rank: test_agreement.py in every run.
        pytest.param("layers", "layers.2", marks=pytest.mark.deep),
        pytest.param("options", "layers = [1]", marks=pytest.mark.deep),
        pytest.param("refused", "rank 1: refused: ", marks=pytest.mark.deep),
    ],
)
def test_ranks_that_differ_all_raise_and_show_the_difference(two_ranks, difference, shown):
    for kind, text in two_ranks.run(differing, difference, timeout=60):
        assert kind == "DisagreementError"
        assert "do not agree on what to compile" in text
        assert "rank 0: " in text and "rank 1: " in text
        assert shown in text
        assert "the same model, options and input shapes" in text


@pytest.mark.deep  # they do in all of tests/ranks
def test_ranks_that_are_alike_agree(two_ranks):
    assert two_ranks.run(differing, "nothing") == [("no error", "")] * 2


def on_a_part_of_the_world():
    """Two tensor-parallel groups that compile different nets: each group agrees with itself."""
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dp, tp = both["dp"].get_local_rank(), both["tp"].get_local_rank()
    alike = refusal(shard("functions", make_net(layers=1 + dp), both["tp"]), make_ids())
    torch._dynamo.reset()  # else rank 3 would have its net compiled already
    differing = refusal(shard("functions", make_net(layers=1 + dp * tp), both["tp"]), make_ids())
    return dp, alike[0], differing[0]


@pytest.mark.deep
def test_only_the_tensor_parallel_group_has_to_agree(four_ranks):
    for dp, alike, differing in four_ranks.run(on_a_part_of_the_world, timeout=60):
        assert alike == "no error"
        assert differing == ("no error" if dp == 0 else "DisagreementError")
