"""Plain Inductor breaks the order of a hand-written ladder; the deferred order is kept."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers.emitted_orders import collectives, moved
from helpers.handwritten import Forward, run_rank, sharded_ladder, sharded_standard
from helpers.inductor import cpp_kernels
from helpers.ranks import Ranks
from torch._dynamo.utils import counters
from torch.torch_version import TorchVersion

from ladderize.backends.emitted import (
    check_emitted,
    find_disorder,
    find_races,
    order_string,
    read_events,
)
from ladderize.backends.inductor import DeferInInductor
from ladderize.errors import LadderError
from ladderize.testing.emitted_code import record_emitted_code

NUM_BLOCKS = 4


@dataclass(frozen=True)
class Seen:
    """One rank's errors against the eager ladder, and its code: the forward, the backward."""

    output_error: float
    grad_error: float
    sources: list[str]


def compile_and_run(forward: Forward, deferred: bool, num_blocks: int = NUM_BLOCKS) -> Seen:
    options = {"post_grad_custom_post_pass": DeferInInductor("off")} if deferred else {}
    with record_emitted_code() as sources:
        outcome = run_rank(torch.compile(forward, fullgraph=True, options=options), num_blocks)
    return Seen(outcome.output_error, outcome.grad_error, sources)


def with_cpp_kernels(forward: Forward, deferred: bool) -> Seen:
    """Races involve buffers that kernels reuse."""
    with cpp_kernels():
        return compile_and_run(forward, deferred)


def order(source: str) -> str:
    return order_string(read_events(source))


@pytest.fixture(scope="module")
def seen(two_ranks: Ranks) -> Callable[[Forward, bool], list[Seen]]:
    cache: dict[tuple[Forward, bool], list[Seen]] = {}

    def run(forward: Forward, deferred: bool) -> list[Seen]:
        if (forward, deferred) not in cache:
            cache[forward, deferred] = two_ranks.run(with_cpp_kernels, forward, deferred)
        return cache[forward, deferred]

    return run


See = Callable[[Forward, bool], list[Seen]]


@pytest.mark.deep
def test_plain_inductor_races_up_to_2_13_and_is_late_after(seen: See) -> None:
    """2.11 and 2.13 read a buffer in flight; 2.15 waits first, for two at the same time."""
    runs = seen(sharded_ladder, False)
    races_here = TorchVersion(torch.__version__) < (2, 14)
    for run in runs:
        forward, backward = map(read_events, run.sources)
        assert bool(find_races(forward)) == races_here
        assert bool(find_disorder(forward)) == (not races_here)
        assert not find_races(backward) and find_disorder(backward)
        for source in run.sources:
            with pytest.raises(LadderError, match=r"waits for collectives|still running"):
                check_emitted(source)
    if not races_here:  # a race is lost on most runs, not on all
        assert max(run.output_error for run in runs) < 1e-5
    else:
        assert any("_fused_" in f.event.name for f in find_races(read_events(runs[0].sources[0])))


def check_order(sources: list[str]) -> None:
    """Forward and backward are both `AR_0 … AR_1 W_0 … AR_3 W_2 W_3`."""
    hidden = (f"AR_{i} W_{i - 1}" for i in range(1, NUM_BLOCKS))
    expected = " ".join(["AR_0", *hidden, f"W_{NUM_BLOCKS - 1}"])
    assert len(sources) == 2
    for source in sources:
        check_emitted(source)
        assert collectives(source) == expected


@pytest.mark.deep
def test_deferred_order_is_right_with_fused_kernels(seen: See) -> None:
    """And the values of real ranks equal the eager ladder."""
    for run in seen(sharded_ladder, True):
        check_order(run.sources)
        assert order(run.sources[0]).startswith(
            "k mm k mm AR_0 mm k mm AR_1 W_0 k mm k mm AR_2 W_1"
        )
        assert run.output_error <= 1e-5
        assert run.grad_error <= 1e-5


@pytest.mark.usefixtures("first_of_two")
def test_deferred_order_is_right_forward_and_backward() -> None:
    check_order(compile_and_run(sharded_ladder, True).sources)


@pytest.mark.deep
def test_faults_planted_in_real_code_are_found(seen: See) -> None:
    """As in every run of tests/cuda."""
    lines = seen(sharded_ladder, True)[0].sources[0].splitlines()
    waits = [i for i, line in enumerate(lines) if "wait_tensor.default(" in line]
    launches = [i for i, line in enumerate(lines) if "all_reduce_.default(" in line]

    program = read_events("\n".join(lines[: waits[1]] + lines[waits[1] + 1 :]))
    found = [finding.what for finding in find_races(program)]
    assert any("launch without a wait" in what for what in found)
    assert any("in flight" in what for what in found)
    later = read_events(moved(lines, waits[1], launches[3] + 1))
    assert find_races(later) and not find_disorder(later)
    earlier = read_events(moved(lines, waits[1], launches[1] + 1))
    assert find_disorder(earlier) and not find_races(earlier)


@pytest.mark.usefixtures("first_of_two")
def test_the_standard_net_waits_at_once_and_that_is_in_order() -> None:
    for source in compile_and_run(sharded_standard, True, 2).sources:
        check_emitted(source)
        assert collectives(source) == "AR_0 W_0 AR_1 W_1"


@pytest.mark.usefixtures("first_of_two")
def test_code_from_the_caches_is_recorded() -> None:
    """The second compilation emits nothing: its code is loaded."""
    first = compile_and_run(sharded_ladder, True, 2)
    torch._dynamo.reset()
    counters.clear()
    second = compile_and_run(sharded_ladder, True, 2)
    assert second.sources == first.sources
    # AOTAutograd's own cache passes by autograd functions
    assert counters["inductor"]["fxgraph_cache_hit"] == 2
