"""One process that stands in for all ranks, without the kernel: `PlantedLane` is in its place.

`KernelLane` itself is given streams and events that only write down what is done with them.
"""

import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import gpu_stand_in
import pytest
import torch
import torch.distributed as dist
from moves import read
from rank_shard import Phase, Weights, make_step
from stand_in import (
    KernelLane,
    LaneWithoutKernel,
    StandInGroup,
    Transfer,
    stand_in,
)
from transformers import LlamaConfig

from ladderize import LadderError, compat
from ladderize.config.hardware.link import Link
from ladderize.frontends.agreement import agree
from ladderize.frontends.verdicts import Verdict

LINK = Link("planted", ranks=8, latency=1e-5, bandwidth=1e9)
functional = torch.ops._c10d_functional


class PlantedLane:
    """Records its arguments, on a machine without CUDA."""

    def __init__(self):
        self.done = []

    def launch(self, seconds, move):
        self.done.append(("launch", seconds))
        move()
        return lambda: self.done.append(("wait", seconds))


@pytest.fixture
def lane():
    return PlantedLane()


@pytest.fixture
def ranks(lane):
    with stand_in(LINK, lane, "cpu") as (mesh, group):
        yield mesh, group
    assert not dist.is_initialized()


def test_the_group_is_rank_0_of_all(ranks):
    mesh, group = ranks
    assert (mesh.size(), mesh.get_local_rank()) == (8, 0)
    assert mesh.get_group() is group and dist.group.WORLD is group


def test_an_all_reduce_leaves_values_as_they_are(ranks, lane):
    _, group = ranks
    x = torch.arange(6.0)
    pending = functional.all_reduce(x, "sum", group.group_name)
    seconds = LINK.seconds(24)
    assert lane.done == [("launch", seconds)]  # and not waited for
    assert functional.wait_tensor(pending).tolist() == x.tolist()
    assert lane.done == [("launch", seconds), ("wait", seconds)]
    assert group.transfers == [Transfer("all_reduce", 24, seconds)]
    assert group.events == [("launch", 0), ("wait", 0)]


def test_an_all_gather_repeats_and_a_reduce_scatter_takes_the_first(ranks, lane):
    _, group = ranks
    own = torch.arange(3.0)
    whole = functional.wait_tensor(functional.all_gather_into_tensor(own, 8, group.group_name))
    assert whole.tolist() == own.tolist() * 8
    part = functional.reduce_scatter_tensor(torch.arange(16.0), "sum", 8, group.group_name)
    assert functional.wait_tensor(part).tolist() == [0.0, 1.0]
    expected = [LINK.seconds(96, "all_gather"), LINK.seconds(64, "reduce_scatter")]
    assert [seconds for what, seconds in lane.done if what == "launch"] == expected


def test_in_a_compiled_graph(ranks):
    _, group = ranks
    name = group.group_name

    def step(x):
        first = functional.all_reduce(x + 1, "sum", name)
        second = functional.all_reduce(x + 2, "sum", name)
        return functional.wait_tensor(first) * functional.wait_tensor(second)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [6.0, 6.0]
    assert group.events == [("launch", 0), ("launch", 1), ("wait", 0), ("wait", 1)]


def test_a_silent_group_takes_no_time(ranks, lane):
    _, group = ranks
    group.is_silent = True
    dist.all_reduce(torch.ones(2))
    assert group.transfers == [Transfer("all_reduce", 8, 0.0)] and not lane.done
    group.clear()
    assert not group.transfers and not group.events


def test_nobody_is_asked_to_agree(ranks):
    _, group = ranks
    assert not agree({group: Verdict("what I do")})


# ---- a shard of a model


CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    vocab_size=64,
    dtype=torch.float32,
)
DECODE = Phase("decode", batch=2, new=1, cached=4, room=8)


@torch.no_grad()
def events_of(ranks, weights, **net):
    _, group = ranks
    torch._dynamo.reset()
    how = {"lowering": "aot_eager", "shard_vocabulary": False, "is_ours": bool(net["staleness"])}
    step, reset = make_step(CONFIG, DECODE, weights, **net, **how)
    reset()
    assert step().shape == (2, 64)
    group.clear()
    step()
    return list(group.events)


@pytest.mark.deep
def test_when_each_net_waits(ranks):
    weights = Weights(ranks[0])
    standard = events_of(ranks, weights, is_parallel=False, staleness=0)
    assert standard == [(what, i) for i in range(4) for what in ("launch", "wait")]
    made = dict(weights.made)
    ladder = events_of(ranks, weights, is_parallel=False, staleness=1)
    for block in range(3):
        assert ladder.index(("wait", block)) > ladder.index(("launch", block + 1))
    assert sorted(ladder) == sorted(standard)
    parallel = events_of(ranks, weights, is_parallel=True, staleness=0)
    assert parallel == standard[:4]  # one all-reduce a layer
    assert weights.made.keys() == made.keys()
    assert all(weights.made[key] is tensor for key, tensor in made.items())  # shared


@pytest.mark.deep
def test_weights_are_those_of_one_rank(ranks):
    weights = Weights(ranks[0])
    events_of(ranks, weights, is_parallel=False, staleness=0)
    shapes = {key[0]: tuple(tensor.shape) for key, tensor in weights.made.items()}
    assert shapes["model.model.layers.0.mlp.up_proj.weight"] == (16, 64)
    assert shapes["keys_0"] == (2, 1, 8, 8)
    lengths = [tensor for key, tensor in weights.made.items() if key[0].startswith("length_")]
    assert [int(length) for length in lengths] == [6, 6]  # two steps behind the 4 cached
    weights.forget_caches()
    kept = {key[0] for key in weights.made}
    assert kept == {name for name in shapes if "_0" not in name and "_1" not in name}


# ---- the kernel's stream


class Told:
    """Streams, events and the kernel: what is done with them, in order."""

    def __init__(self, monkeypatch):
        self.done, self.current = [], self.stream("current")
        properties = SimpleNamespace(multi_processor_count=4, shared_memory_per_block_optin=9000)
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(cuda, "Stream", lambda *_, **__: self.stream("side"))
        monkeypatch.setattr(cuda, "Event", lambda: self.event())
        monkeypatch.setattr(cuda, "current_stream", lambda *_: self.current)
        monkeypatch.setattr(cuda, "stream", self.on)
        monkeypatch.setattr(compat, "compile_kernel", self.compile)

    def stream(self, name):
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.done.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.done.append(f"{name} waits for {event.name}"),
        )

    def event(self):
        event = SimpleNamespace(name="done")
        event.record = lambda stream: self.done.append(f"done is recorded on {stream.name}")
        return event

    def compile(self, source, name):
        assert f"void {name}(int" in source

        def kernel(*, grid, block, args, shared_mem, stream):
            assert block[0] > 0 and shared_mem == self.configured
            self.done.append(f"{grid[0]} blocks for {args[0]} ns on {stream.name}")

        kernel.set_shared_memory_config = lambda size: setattr(self, "configured", size)
        return kernel

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before


def test_a_kernel_is_launched_and_waited_for_by_events(monkeypatch):
    told = Told(monkeypatch)
    lane = KernelLane(torch.device("cpu"), sms=3)
    wait = lane.launch(2e-5, lambda: told.done.append(f"values move on {told.current.name}"))
    assert told.done == [
        "side waits for current",
        "3 blocks for 20000 ns on side",
        "values move on side",
        "done is recorded on side",
    ]
    told.done.clear()
    wait()
    assert told.done == ["current waits for done"]


def test_what_a_kernel_cannot_do(monkeypatch):
    Told(monkeypatch)
    with pytest.raises(LadderError, match="cannot take 5 SMs: cpu has 4"):
        KernelLane(torch.device("cpu"), sms=5)
    with pytest.raises(LadderError, match=r"A transfer of 3 s is longer"):
        KernelLane(torch.device("cpu")).launch(3.0, lambda: None)


def test_without_a_kernel_nothing_lasts():
    group = StandInGroup(LINK, LaneWithoutKernel())
    assert group.allreduce([torch.ones(2)]).wait()


# ---- the script


@pytest.mark.deep
def test_a_dry_run(monkeypatch, tmp_path, capsys):
    small = "--layers 2 --hidden 64 --batch 2 --prompt 4 --new 3 --repeats 2 --device cpu"
    how = ["--lowering", "aot_eager", "--dtype", "float32", "--json", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["gpu_stand_in.py", *small.split(), *how])
    gpu_stand_in.main()
    printed = capsys.readouterr().out
    assert "dry run" in printed and "generation" in printed
    rows = {(r.key["phase"], r.key["variant"]): r for r in read(tmp_path / "a.json").rows}
    assert len(rows) == len(json.loads((tmp_path / "a.json").read_text())["rows"]) == 15
    whole = rows["generation", "ladder"]
    seconds = [rows[phase, "ladder"].values["median_s"] for phase in ("prefill", "decode")]
    assert whole.values["median_s"] == pytest.approx(seconds[0] + 2 * seconds[1])
    assert whole.values["tokens_per_s"] == pytest.approx(6 / whole.values["median_s"])
    assert rows["decode", "bound"].values["communicating_s"] == 0
    sent = {name: rows["decode", name].values["communicating_s"] for name in ("standard", "ladder")}
    assert sent["standard"] == pytest.approx(sent["ladder"]) and sent["ladder"] > 0
    assert rows["decode", "bound"].values["exposed_s"] == 0
    assert "standard_ratio" in whole.values and whole.key["model"].endswith("2 layers of 64")


def test_steps_are_held_against_those_beside_them():
    seconds = {"standard": [2.0, 4.0, 8.0], "ladder": [1.5, 3.0, 4.0], "bound": [1.0, 2.0, 4.0]}
    sent = {"standard": 1.0, "ladder": 2.0, "bound": 1.0}
    key = {"phase": "decode", "batch": 2, "length": 4}
    decode = gpu_stand_in.Turns(key, seconds, sent, {"peak_bytes": 3.0})
    ladder = {row.key["variant"]: row for row in decode.rows()}["ladder"].values
    assert (ladder["standard_ratio"], ladder["bound_ratio"]) == (0.75, 1.5)
    assert (ladder["exposed_s"], ladder["hidden_fraction"]) == (0.5, 0.75)  # pair by pair
    assert (ladder["communicating_s"], ladder["peak_bytes"]) == (2.0, 3.0)
    prefill = gpu_stand_in.Turns({**key, "phase": "prefill"}, seconds, sent, {})
    first, *_ = gpu_stand_in.generation(prefill, decode, new=3)
    assert first.key == {"variant": "standard", **key, "phase": "generation"}
    assert (first.values["median_s"], first.values["tokens_per_s"]) == (12.0, 0.5)


def test_a_parallel_block_has_no_exposed_time():
    seconds = {"parallel": [1.0], "bound": [2.0]}
    turns = gpu_stand_in.Turns({"phase": "decode"}, seconds, dict.fromkeys(seconds, 1.0), {})
    parallel, bound = turns.rows()
    assert "exposed_s" not in parallel.values and bound.values["exposed_s"] == 0.0


def test_a_machine_without_cuda(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_stand_in.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu_stand_in.main()
