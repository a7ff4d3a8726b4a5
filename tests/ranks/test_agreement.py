"""Agreement of ranks, and how long they wait: with notes alone, then in compilations."""

import time
from datetime import timedelta
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from helpers.parallel_nets import eager_ladder, make_ids, make_net, shard
from helpers.ranks import Ranks, mesh

import ladderize
from ladderize import LadderError, compat
from ladderize.backends import LOWERINGS
from ladderize.frontends.agreement import agree, explain_failed_calls
from ladderize.frontends.verdicts import Verdict
from ladderize.passes import before_autograd

SECONDS = 2


def start_impatient(rank: int, num_ranks: int) -> None:
    timeout = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks, timeout=timeout)


@pytest.fixture(scope="module")
def impatient():
    with Ranks(2, start_impatient) as ranks:
        yield ranks


def outcome(action):
    """The result or error as text, and the time it took."""
    began = time.monotonic()
    try:
        found = str(action())
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    return found, time.monotonic() - began


def is_first():
    return dist.get_rank() == 0


def meet():
    """A barrier that outlasts the group's timeout."""
    store = compat.default_store()
    number = (store.add("met", 1) - 1) // dist.get_world_size()
    while store.add("met", 0) < (number + 1) * dist.get_world_size():
        time.sleep(0.02)


# ---- notes alone ------------------------------------------------------------------------------


def ask(text, sequence=None):
    """The ranks that did not answer."""
    return [sorted(gone) for gone in agree({dist.group.WORLD: Verdict(text, sequence)}).values()]


def joined_then_alone():
    found = [outcome(lambda: ask("net, 6 rows", "net"))]
    if is_first():
        found.append(outcome(lambda: ask("net, 3 rows", "net")))
    meet()
    found.append(outcome(lambda: ask("net, 9 rows", "net")))
    found.append(outcome(lambda: ask("other", "other")))
    return found


def test_a_rank_goes_on_alone_if_all_have_agreed_before(impatient):
    """After it both write and read their notes in step again."""
    first, second = impatient.run(joined_then_alone)
    assert [text for text, _ in first] == ["[[]]", "[[1]]", "[[]]", "[[]]"]
    assert [text for text, _ in second] == ["[[]]"] * 3


def alone_with_news():
    found = outcome(lambda: ask("news", "news")) if is_first() else None
    meet()
    return found, outcome(lambda: ask("again", "again"))


def test_a_rank_alone_with_something_new_waits_as_long_as_a_collective(impatient):
    ((text, seconds), later), (_, other) = impatient.run(alone_with_news)
    assert text.startswith("DisagreementError: The ranks of group")
    assert f"rank 1: no answer within {SECONDS} s" in text
    assert SECONDS <= seconds <= SECONDS + 3
    assert later[0] == other[0] == "[[]]"  # the note that came to nothing is not read later


def differing_notes():
    asked = [("stale by 1", "1"), ("stale by 2", "2")][dist.get_rank()]
    both = outcome(lambda: ask("same", "same"))
    return both, outcome(lambda: ask("blocks\n" + asked[0], "same")), outcome(lambda: ask(*asked))


def test_ranks_that_differ_hear_it_at_once_and_see_the_difference(impatient):
    for both, known, unknown in impatient.run(differing_notes):
        assert both[0] == "[[]]"
        for text, seconds in (known, unknown):
            assert "do not agree on what to compile" in text
            assert seconds < SECONDS
        assert "rank 0: blocks\n      stale by 1" in known[0]
        assert "rank 1: stale by 2" in unknown[0]


def explained():
    def failing(_):
        raise RuntimeError("Timed out waiting for recv")

    agreed = {dist.group.WORLD: Verdict("this")}
    if not is_first():
        found = outcome(lambda: ask("that", "that"))
        meet()
        return found
    while "that" not in (found := outcome(lambda: explain_failed_calls(failing, agreed)(0)))[0]:
        assert "Timed out" in found[0]
    meet()
    return found, outcome(lambda: explain_failed_calls(failing, agreed)(0))


def test_a_collective_that_fails_says_what_the_others_compile(impatient):
    (during, after), _ = impatient.run(explained)
    assert during[0].startswith("DisagreementError: A collective failed while another rank")
    assert "rank 0: this" in during[0] and "rank 1: that" in during[0]
    assert "Timed out" not in after[0]  # it gave up, but this rank still has not read it


# ---- compilations -----------------------------------------------------------------------------


def compiled(net, **options):
    options = {"lowering": "eager", **options}
    return torch.compile(net, backend="ladderize", fullgraph=True, options=options)


def worst(run, net, ids):
    return (run(ids) - eager_ladder(net, ids)).abs().max().item()


def alone_after(change, way):
    """The second call is compiled by rank 0 alone, after `change`."""
    whole, net = make_net(layers=1), make_net(layers=1)
    run = compiled(net, mesh=mesh()) if way == "mesh" else compiled(shard(way, net, mesh()))
    ids = make_ids()
    with torch.no_grad():
        errors = [worst(run, whole, ids)]
        if is_first() and change == "reset":
            torch._dynamo.reset()
        if is_first() and change == "dynamic":
            torch._dynamo.mark_dynamic(ids, 1)
        with torch.set_grad_enabled(change == "gradients" and is_first()):
            errors.append(worst(run, whole, ids))
        if change == "uneven batch":
            errors.append(worst(run, whole, make_ids(batch=1)))
        errors.append(worst(run, whole, ids))
    return errors


@pytest.mark.parametrize(
    ("change", "way"),
    [
        ("reset", "mesh"),
        ("dynamic", "functions"),
        pytest.param("gradients", "mesh", marks=pytest.mark.deep),
        pytest.param("dynamic", "mesh", marks=pytest.mark.deep),
        pytest.param("uneven batch", "mesh", marks=pytest.mark.deep),
    ],
)
def test_a_rank_that_compiles_alone_passes(two_ranks, change, way):
    for errors in two_ranks.run(alone_after, change, way):
        assert max(errors) <= 1e-4


OPTIONS = {
    "staleness": ({}, {"staleness": 2}),
    "blocks": ({"blocks": [1, 2]}, {"blocks": [2, 3]}),
    "layers": ({}, {"layers": "last:1"}),
    "mistaken": ({}, {"layers": "most"}),
}


def with_options(case, before):
    """Each rank compiles with its own options; `before`, all have agreed on those of rank 0."""
    first, mine = OPTIONS[case][0], OPTIONS[case][dist.get_rank()]
    net = make_net(layers=2)
    with torch.no_grad():
        if before:
            compiled(net, mesh=mesh(), **first)(make_ids())
            torch._dynamo.reset()
        return outcome(lambda: compiled(net, mesh=mesh(), **mine)(make_ids()).sum())


@pytest.mark.parametrize(
    ("case", "shown", "before"),
    [
        ("staleness", "+staleness = 2", True),
        ("blocks", "+blocks converted: [2, 3]", False),
        ("layers", "+layers = last:1", False),
        ("mistaken", "rank 1: refused: ", False),
        pytest.param("blocks", "+blocks converted: [2, 3]", True, marks=pytest.mark.deep),
        pytest.param("mistaken", "rank 1: refused: ", True, marks=pytest.mark.deep),
    ],
)
def test_options_that_differ_are_an_error_on_all(two_ranks, case, shown, before):
    for text, _ in two_ranks.run(with_options, case, before):
        assert text.startswith("DisagreementError: The ranks of group")
        assert shown in text


def absent():
    net = make_net(layers=1)
    found = outcome(lambda: compiled(net, mesh=mesh())(make_ids())) if is_first() else None
    meet()
    return found


def test_a_rank_that_never_compiles_is_an_error_not_a_hang(impatient):
    (text, _), _ = impatient.run(absent)
    assert f"rank 1: no answer within {SECONDS} s" in text


def fault_of_ours(find):
    """Rank 1 meets a fault in a pass, of a type that no refusal has."""

    def fail(*args):
        return find(*args) if is_first() else 1 / 0

    with torch.no_grad(), patch.object(before_autograd, "streams_in", fail):
        return outcome(lambda: compiled(make_net(layers=1), mesh=mesh())(make_ids()))


def test_an_error_of_any_type_in_one_ranks_rewrite_is_raised_on_all(two_ranks):
    for text, seconds in two_ranks.run(fault_of_ours, before_autograd.streams_in, timeout=60):
        assert text.startswith("DisagreementError")
        assert "rank 1: failed: ZeroDivisionError: division by zero" in text
        assert seconds < 60


def lowering_that_fails_on_rank_1(error):
    def lower(gm, example_inputs, config):
        if dist.get_rank() == 1:
            raise error
        return LOWERINGS["aot_eager"](gm, example_inputs, config)

    return lower


def one_lowering_fails(error):
    with patch.dict(LOWERINGS, eager=lowering_that_fails_on_rank_1(error)):
        return outcome(lambda: compiled(make_net(layers=1), mesh=mesh())(make_ids()))


def test_an_error_of_one_rank_in_any_lowering_stops_all(two_ranks):
    """Errors of any type: the other ranks must be told, or they would wait for its collectives."""
    for error in (RuntimeError("out of registers"), LadderError("Cannot be lowered.")):
        for said, _ in two_ranks.run(one_lowering_fails, error, timeout=60):
            assert "rank 1: not lowered" in said
            assert str(error) in said


def parallelized(what):
    """Rank 1 does something else."""
    net, options = make_net(layers=2), {}
    if not is_first() and what == "options":
        options = {"staleness": 2}
    if not is_first() and what == "dtype":
        net = net.double()
    source = (lambda: 1 / 0) if not is_first() and what == "no model" else net
    return outcome(lambda: ladderize.parallelize(source, mesh(), (make_ids(),), **options))


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ("options", "reads"),
        ("dtype", "float64"),
        ("no model", "rank 1: refused: ZeroDivisionError: division by zero"),
    ],
)
def test_parallelize_agrees_on_the_graph(two_ranks, what, shown):
    for text, _ in two_ranks.run(parallelized, what):
        assert text.startswith("DisagreementError: The ranks of group")
        assert shown in text
