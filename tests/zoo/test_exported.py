"""Every family as an exported program: over two ranks; some rewritten, and their gradients.

One export serves all that is asked of a family: its cases follow one another.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from helpers.lockstep import ShardedProgram
from torch.export import ExportedProgram

from ladderize import LadderConfig, LadderError, LadderWarning, rewrite
from ladderize.frontends.rewrite import ladder_program
from ladderize.sharding.placement import Replicate, take_local
from ladderize.testing import assert_close, eager_ladder
from zoo.family import Family
from zoo.sharded import TOLERANCE, UNEXPORTED, check_over, expect, exported, run
from zoo.table import FAMILIES

# Family -> over how many ranks its gradients are compared; over 4, keys have fewer heads than that.
TRAINED = {
    "llama": 4,
    "mixtral": 4,
    "gpt-oss": 4,
    "llama4": 4,
    "phi3 (fused projections)": 4,
    "falcon (parallel)": 4,
    "olmo2 (normed branches)": 2,
    "gpt2": 2,
    "bloom": 2,
    "albert (shared weights)": 2,
    "t5": 2,
    "swin": 2,
    "resnet (basic layers)": 2,
    "nn.TransformerEncoder (pre-norm)": 2,
}
# Not decomposed: torch 2.13's run_decompositions() fails on a view of strided attention results.
UNDECOMPOSED = {"gpt2"}
# Once rewritten their stale blocks are not seen, and the rest is refused; it is not laddered twice.
UNSEEN = {"bit (pre-activation)", "out[:, i] = f(x)[:, i]"}


@pytest.fixture(autouse=True)
def _no_fused_layers() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def equals_the_eager_ladder_over_two_ranks(family: Family) -> None:
    check_over(family, 2)


def has_its_part_of_the_gradients(family: Family) -> None:
    """Each rank's gradient of its part of a parameter is that part of the eager gradient."""
    num_ranks, (model, program) = TRAINED[family.name], exported(family)
    sharded = ShardedProgram(program, num_ranks)
    outputs = run(sharded, **family.feed())
    sum(_loss(found) for found in outputs).backward()
    _loss(expect(family, model, **family.feed())).backward()
    full = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    compared = 0
    for rank, local in enumerate(sharded.local):
        for parameter, leaf in local.items():
            if leaf.grad is None:
                continue
            placement = sharded.plan.placements.get(parameter, Replicate())
            wanted = take_local(full[parameter], placement, rank, num_ranks)
            assert_close(leaf.grad, wanted, tolerance=TOLERANCE, what=f"{parameter} on {rank}")
            compared += 1
    assert compared >= 10 * num_ranks


def _loss(outputs: list[torch.Tensor]) -> torch.Tensor:
    return sum(out.sin().mean() for out in outputs if out.requires_grad)


def equals_the_eager_ladder_rewritten(
    family: Family, form: Callable[[ExportedProgram], ExportedProgram]
) -> None:
    model, program = exported(family)
    with torch.no_grad():
        ladder = rewrite(form(program), expect_blocks=family.blocks).module()
        with eager_ladder(model, family.reads):
            expected = model(**family.feed())
        assert_close(ladder(**family.feed()), expected)


def is_a_ladder_afterwards(family: Family) -> None:
    """Rewritten once more it is left as it is."""
    ladder = rewrite(exported(family)[1])
    if family.name in UNSEEN:
        with pytest.raises(LadderError, match="No block of this graph comes after another one"):
            ladder_program(ladder, LadderConfig())
        return
    with pytest.warns(LadderWarning, match="is a ladder already"):
        again, _ = ladder_program(ladder, LadderConfig())
    assert not any(again.chosen)


as_it_is = partial(equals_the_eager_ladder_rewritten, form=lambda program: program)
decomposed = partial(
    equals_the_eager_ladder_rewritten, form=lambda program: program.run_decompositions()
)


def checks(family: Family) -> Iterator[tuple[str, Callable[[Family], None]]]:
    yield "two ranks", equals_the_eager_ladder_over_two_ranks
    if family.name in TRAINED:
        yield "gradients", has_its_part_of_the_gradients
    yield "rewritten twice", is_a_ladder_afterwards
    if family.is_deep:
        yield "rewritten", as_it_is
    if family.is_deep and family.name not in UNDECOMPOSED:
        yield "rewritten, decomposed", decomposed


@pytest.mark.parametrize(
    ("family", "check"),
    [
        pytest.param(family, check, id=f"{family.name}-{name}")
        for family in FAMILIES
        if family.name not in UNEXPORTED
        for name, check in checks(family)
    ],
)
@pytest.mark.filterwarnings("ignore:Not all is divided")
def test_the_exported_program(family: Family, check: Callable[[Family], None]) -> None:
    check(family)
