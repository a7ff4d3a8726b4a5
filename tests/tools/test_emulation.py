"""The emulated link on two real ranks: values, and the recorded times compared with each other.

The machine may be busy: nothing here says how long anything takes, only what cannot be otherwise.
"""

import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from helpers.ranks import Ranks
from helpers.reads import BODY
from helpers.sharded import MODELS
from torch.distributed.device_mesh import init_device_mesh

from ladderize.config.hardware import Link
from ladderize.testing import eager_ladder
from ladderize.tools.emulation import EmulatedGroup, Exposure, Transfer, init_emulated
from ladderize.tools.emulation.priority import before_compute

ALPHA = 0.05  # long against what gloo takes, also on a busy machine
LINK = Link("test", ranks=2, latency=ALPHA, bandwidth=1e6)
OPS = torch.ops._c10d_functional


def start_emulated(rank, num_ranks):
    init_emulated(LINK, rank=rank, world_size=num_ranks)


@pytest.fixture(scope="module")
def emulated_ranks():
    with Ranks(2, start_emulated) as ranks:
        yield ranks


def world():
    """The default group as it was at first."""
    group = dist.group.WORLD
    assert isinstance(group, EmulatedGroup)
    group.link = LINK
    group.clear()
    return group


def launch(group, size=1000):
    return dist.all_reduce(torch.ones(size), group=group, async_op=True)


# Values


def collectives(group):
    """What each collective returns, by its name."""
    name, rank = group.group_name, dist.get_rank()
    x = torch.arange(6.0).reshape(2, 3) + 10 * rank
    pending = {
        "all_reduce": [OPS.all_reduce(x, "sum", name)],
        "all_reduce max": [OPS.all_reduce(x, "max", name)],
        "all_reduce coalesced": OPS.all_reduce_coalesced([x, x + 1], "max", name),
        "all_gather": [OPS.all_gather_into_tensor(x, 2, name)],
        "all_gather coalesced": OPS.all_gather_into_tensor_coalesced([x, x + 1], 2, name),
        "reduce_scatter": [OPS.reduce_scatter_tensor(x, "sum", 2, name)],
        "reduce_scatter coalesced": OPS.reduce_scatter_tensor_coalesced([x, -x], "sum", 2, name),
        "all_to_all": [OPS.all_to_all_single(x, [1, 1], [1, 1], name)],
        "all_to_all unequal": [OPS.all_to_all_single(x, [2 * rank] * 2, [0, 2], name)],
        "broadcast": [OPS.broadcast(x, 1, name)],
    }
    found = {key: [OPS.wait_tensor(y) for y in ys] for key, ys in pending.items()}
    found["in place"] = [x.clone(), x.new_empty(4, 3), x.new_empty(1, 3)]
    found["list"] = [x.new_empty(3), x.new_empty(3)]
    dist.all_reduce(found["in place"][0], group=group)
    dist.all_gather_into_tensor(found["in place"][1], x, group=group)
    dist.reduce_scatter_tensor(found["in place"][2], x, group=group)
    dist.all_to_all(found["list"], list(x), group=group)
    return {key: [y.tolist() for y in ys] for key, ys in found.items()}


def both_groups():
    group = world()
    emulated = collectives(group)
    of_gloo = collectives(dist.new_group([0, 1], backend="gloo"))
    return emulated, of_gloo, [(t.op, t.num_bytes) for t in group.transfers]


def test_values_are_those_of_gloo(emulated_ranks):
    for emulated, of_gloo, transfers in emulated_ranks.run(both_groups):
        assert emulated == of_gloo
        assert transfers == [
            *(("all_reduce", size) for size in (24, 24, 48)),
            *(("all_gather", size) for size in (48, 96)),
            *(("reduce_scatter", size) for size in (24, 48)),
            *(("all_to_all", size) for size in (24, 24)),
            ("broadcast", 24),
            *(("all_reduce", 24), ("all_gather", 48), ("reduce_scatter", 24)),
            ("all_to_all", 24),
        ]


def read_in_flight():
    """A buffer before the wait, long after gloo has the sum, and after the wait."""
    group = world()
    group.link = replace(LINK, latency=0.5)
    buffer = torch.ones(4)
    work = dist.all_reduce(buffer, group=group, async_op=True)
    schedule = work.schedule.result()
    seen, moment = buffer.tolist(), time.perf_counter()
    work.wait()
    return seen, buffer.tolist(), schedule.arrived < schedule.due, moment < schedule.due


def test_values_appear_when_the_transfer_is_due(emulated_ranks):
    """So an access to a buffer in flight is as wrong as on a slow link."""
    for seen, after, gloo_was_quick, read_early in emulated_ranks.run(read_in_flight):
        assert gloo_was_quick or not read_early
        assert after == [2.0] * 4
        if read_early:
            assert seen == [1.0] * 4


def go_past_the_link():
    group = world()
    dist.barrier()
    objects = [None, None]
    dist.all_gather_object(objects, {"rank": dist.get_rank()})
    return objects, len(group.transfers), dist.get_backend(), group.group_name


def test_everything_else_goes_past_the_link(emulated_ranks):
    for outcome in emulated_ranks.run(go_past_the_link):
        assert outcome == ([{"rank": 0}, {"rank": 1}], 0, "emulated", "0")


# Times


def record(steps):
    """The transfers of a run: l launches one, w waits for the oldest, W once it is due."""
    group = world()
    dist.barrier()
    pending = []
    for step in steps:
        if step == "l":
            pending.append(launch(group))
            continue
        work = pending.pop(0)
        while step == "W" and not work.is_completed():
            time.sleep(ALPHA / 10)
        work.wait()
    return group.transfers


def test_ranks_agree_on_the_schedule(emulated_ranks):
    one, other = emulated_ranks.run(record, "llwwlw")
    assert len(one) == 3
    for a, b in zip(one, other, strict=True):
        assert (a.peers, a.free, a.due) == (b.peers, b.free, b.due)
        assert a.peers == max(a.launched, b.launched)


def test_a_transfer_takes_what_the_link_says(emulated_ranks):
    for transfers in emulated_ranks.run(record, "lwlw"):
        assert all(t.due == t.started + LINK.seconds(4000, "all_reduce") for t in transfers)


def test_one_transfer_at_a_time(emulated_ranks):
    for first, second in emulated_ranks.run(record, "llww"):
        assert second.started == second.free == first.due
        assert second.due == first.due + LINK.seconds(4000)


def test_a_wait_is_never_over_before_the_transfer_is_due(emulated_ranks):
    for transfers in emulated_ranks.run(record, "lwllwwlWlw"):
        assert all(t.released >= max(t.due, t.arrived) for t in transfers)


def test_a_wait_entered_at_once_is_exposed(emulated_ranks):
    for (transfer,) in emulated_ranks.run(record, "lw"):
        computed = transfer.entered - transfer.launched
        assert transfer.exposed >= transfer.seconds - computed - 1e-9


def test_a_wait_entered_when_all_is_there_is_hidden(emulated_ranks):
    for transfers in emulated_ranks.run(record, "lW" * 5):
        assert all(t.entered >= t.due for t in transfers)
        assert min(t.exposed for t in transfers) < 0.01 * ALPHA
        assert max(t.hidden for t in transfers) > 0.99 * ALPHA


def launch_late():
    """Rank 1 launches when rank 0 has long done so."""
    group = world()
    if dist.get_rank() == 0:
        work = launch(group)
    dist.barrier()
    if dist.get_rank() == 1:
        time.sleep(2 * ALPHA)
        work = launch(group)
    work.wait()
    return group.transfers[0]


def test_a_late_peer_is_told_apart(emulated_ranks):
    early, late = emulated_ranks.run(launch_late)
    waited = early.released - early.entered
    assert early.peers == late.launched > early.launched + 2 * ALPHA
    assert early.late_peer == min(late.launched - early.launched, waited) > 0
    assert early.exposed == waited - early.late_peer
    assert late.late_peer == 0


def exchange(to_other):
    """All-to-alls in which a rank gives the other some of 1000 rows, 4 bytes each."""
    group, rank = world(), dist.get_rank()
    for rows in zip(*to_other, strict=True):
        given = [1000 - rows[rank]] * 2
        given[1 - rank] = rows[rank]
        taken = [1000 - rows[rank]] * 2
        taken[1 - rank] = rows[1 - rank]
        dist.all_to_all_single(torch.empty(sum(taken)), torch.ones(1000), taken, given)
    return [(t.seconds, t.due) for t in group.transfers]


def test_the_busiest_rank_decides_how_long_unequal_splits_take(emulated_ranks):
    one, other = emulated_ranks.run(exchange, [(500, 0, 100, 0), (500, 1000, 300, 0)])
    assert one == other
    busiest = [ALPHA + 4 * rows / LINK.bandwidth for rows in (500, 1000, 300, 0)]
    assert [seconds for seconds, _ in one] == pytest.approx(busiest)


def launch_on_links_of_their_own():
    """That of rank 1 is the slower one, as if it sent more."""
    group = world()
    group.link = replace(LINK, latency=ALPHA * (1 + dist.get_rank()))
    for _ in range(2):
        launch(group).wait()
    return [(t.seconds, t.due) for t in group.transfers]


def test_a_transfer_takes_as_long_as_on_the_slowest_rank(emulated_ranks):
    one, other = emulated_ranks.run(launch_on_links_of_their_own)
    assert one == other
    assert [seconds for seconds, _ in one] == pytest.approx([2 * ALPHA + 4000 / 1e6] * 2)


def send_to_each_other():
    """Both send and receive at once, as a ring does."""
    group, other = world(), 1 - dist.get_rank()
    found = torch.zeros(1000)
    given = torch.full((1000,), float(other))
    ops = [dist.P2POp(dist.isend, given, other), dist.P2POp(dist.irecv, found, other)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    return found[0].item(), [(t.op, t.seconds, t.started) for t in group.transfers]


def test_messages_have_a_lane_in_each_direction(emulated_ranks):
    (found, one), (also, other) = emulated_ranks.run(send_to_each_other)
    assert (found, also) == (0.0, 1.0)
    assert one == other[::-1]
    for op, seconds, _ in one:
        assert (op, seconds) == ("p2p", pytest.approx(ALPHA + 4000 / LINK.bandwidth))
    assert abs(one[0][2] - one[1][2]) < ALPHA  # neither waits for the other


def change_the_link():
    group = world()
    launch(group).wait()
    group.link = replace(LINK, latency=0.0, bandwidth=1e5)
    launch(group).wait()
    return [t.seconds for t in group.transfers]


def test_the_link_can_be_changed_between_runs(emulated_ranks):
    for before, after in emulated_ranks.run(change_the_link):
        assert before == pytest.approx(ALPHA + 4000 / 1e6)
        assert after == pytest.approx(4000 / 1e5)


def transfer(**moments):
    """By default 1 s long, launched by all ranks at 0 and waited for immediately."""
    usual = {"launched": 0.0, "peers": 0.0, "free": 0.0, "due": 1.0, "arrived": 0.1}
    usual |= {"entered": 0.0, "released": 1.0}
    return Transfer("all_reduce", 8, **(usual | moments))


@pytest.mark.parametrize(
    ("moments", "exposed", "late_peer", "hidden"),
    [
        ({}, 1, 0, 0),
        ({"entered": 0.25}, 0.75, 0, 0.25),
        ({"entered": 3, "released": 3}, 0, 0, 1),
        # Behind another transfer: it could not have started earlier.
        ({"free": 2, "due": 3, "entered": 2, "released": 3}, 1, 0, 0),
        ({"free": 2, "peers": 1, "due": 3, "entered": 0, "released": 3}, 3, 0, -2),
        ({"peers": 4, "due": 5, "entered": 0, "released": 5}, 1, 4, 0),
        ({"peers": 4, "due": 5, "entered": 0.5, "released": 5}, 0.5, 4, 0.5),
        # With its peers it would have been there before the wait began.
        ({"peers": 4, "due": 5, "entered": 2, "released": 5}, 0, 3, 1),
    ],
)
def test_a_wait_is_divided(moments, exposed, late_peer, hidden):
    found = transfer(**moments)
    assert (found.exposed, found.late_peer, found.hidden) == (exposed, late_peer, hidden)


def test_what_a_run_comes_to():
    slow = transfer(arrived=2.0, released=2.0)
    found = Exposure.of([transfer(), transfer(entered=3, released=3), slow])
    assert found == Exposure(num_transfers=3, total=3, exposed=3, late_peer=0, num_slow=1)
    assert (found.hidden, found.hidden_fraction) == (0, 0)
    found = Exposure.of([transfer(entered=0.25), transfer(entered=3, released=3)])
    assert (found.hidden, found.hidden_fraction) == (1.25, 0.625)
    assert Exposure.of([]).hidden_fraction == 1


def test_each_kind_of_collective_is_summed_up_by_itself():
    reduce, other = transfer(entered=0.25), replace(transfer(), op="all_to_all")
    found = Exposure.by_kind([reduce, other, reduce])
    assert found == {"all_reduce": Exposure.of([reduce] * 2), "all_to_all": Exposure.of([other])}


def test_carriers_go_before_compute():
    """Where the system allows it; the caller itself never does."""
    usual, seen = os.sched_getscheduler(0), []
    with before_compute() as is_allowed:
        thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
        thread.start()
        thread.join()
    assert seen == [os.SCHED_FIFO if is_allowed else usual]
    assert os.sched_getscheduler(0) == usual


# Compiled models


def run_llama(lowering, staleness):
    """Its transfers over the emulated link, and the largest difference from one process."""
    group = world()
    model = MODELS["llama"](layers=1, kv=2)
    ids = torch.arange(12).reshape(2, 6)
    mesh = init_device_mesh("cpu", (2,))
    options = {"mesh": mesh, "shard_vocabulary": False}
    options |= {"lowering": lowering, "staleness": staleness}
    compiled = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
    with torch.no_grad():
        found = compiled(input_ids=ids)[0]
        with eager_ladder(model, BODY["llama"]) if staleness else nullcontext():
            expected = model(input_ids=ids)[0]
    return group.transfers, (found - expected).abs().max().item()


@pytest.mark.deep
@pytest.mark.parametrize("lowering", ["aot_eager", "inductor"])
def test_compiled_ladders(emulated_ranks, lowering):
    for transfers, error in emulated_ranks.run(run_llama, lowering, 1):
        assert error < 1e-4
        assert [t.op for t in transfers] == ["all_reduce"] * 2
        for transfer, following in pairwise(transfers):
            assert transfer.entered > following.launched  # the wait is behind the next launch


@pytest.mark.deep
def test_compiled_standard_nets(emulated_ranks):
    for transfers, error in emulated_ranks.run(run_llama, "aot_eager", 0):
        assert error < 1e-4
        for transfer, following in pairwise(transfers):
            assert transfer.released < following.launched


def on_a_mesh_of_two_axes():
    group = world()
    group.link = replace(LINK, latency=2 * ALPHA)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    axis = mesh["tp"].get_group()
    x = OPS.wait_tensor(OPS.all_reduce(torch.ones(4), "sum", axis.group_name))
    found = axis.link == group.link, x.tolist(), len(group.transfers)
    part = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    launch(part).wait()
    return *found, part.transfers[0].op


def test_axes_and_new_groups_have_links(emulated_ranks):
    for outcome in emulated_ranks.run(on_a_mesh_of_two_axes):
        assert outcome == (True, [2.0] * 4, 1, "all_reduce")


# What goes wrong


def join_alone():
    """Rank 1 does not join."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=1))
    if dist.get_rank() == 1:
        return ""
    works = [launch(group), launch(group)]
    with pytest.raises(RuntimeError) as error:
        works[0].wait()
    with pytest.raises(RuntimeError):
        works[1].wait()
    return error.value.__notes__[0]


def test_a_rank_that_does_not_join(emulated_ranks):
    note, _ = emulated_ranks.run(join_alone)
    assert note == "while an emulated link carried all_reduce, 4000 bytes"


def die():
    """Rank 1 ends as soon as it has answered; rank 0 waits for it."""
    if dist.get_rank() == 1:
        threading.Timer(ALPHA, os._exit, [1]).start()
        return ""
    name = world().group_name
    with pytest.raises(RuntimeError) as error:
        for _ in range(1000):
            OPS.wait_tensor(OPS.all_reduce(torch.ones(1), "sum", name))
    return str(error.value)


def test_a_dead_rank_is_an_error_on_the_others():
    with Ranks(2, start_emulated) as ranks:
        message, _ = ranks.run(die)
    assert "onnection" in message


# Ends


LAUNCHED_BY_ONE = """
import sys, torch, torch.distributed as dist
from ladderize.tools.emulation import init_emulated
from ladderize.config.hardware import Link

rank, folder, end = int(sys.argv[1]), *sys.argv[2:]
store = dist.FileStore(folder + "/store", 2)
init_emulated(Link("planted", 2, 0.001, 1e9), rank=rank, world_size=2, store=store)
dist.all_reduce(torch.ones(2))
if rank == 0:
    pending = [dist.all_reduce(torch.ones(2), async_op=True) for _ in range(2)]
    exec(end)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        ("raise ValueError('mine')", 1, "ValueError: mine\n"),
        pytest.param("sys.exit(3)", 3, "", marks=pytest.mark.deep),
    ],
)
def test_a_rank_ends_with_its_own_error(tmp_path, end, code, says):
    """At once, and although it launched what its peer never does."""
    lines = [[sys.executable, "-c", LAUNCHED_BY_ONE, str(rank), tmp_path, end] for rank in (0, 1)]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(lines[0], **pipes) as first, subprocess.Popen(lines[1], **pipes):
        _, told = first.communicate(timeout=60)  # its peer stays until its own input is closed
    assert first.returncode == code, told
    assert told.endswith(says)
