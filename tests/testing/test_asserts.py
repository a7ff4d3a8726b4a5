"""`ladderize.testing`: hand-written references, and checks that fail when they should."""

import dataclasses
import doctest
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.few_examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from ladderize import testing
from ladderize.errors import LadderError
from ladderize.testing import (
    TOLERANCE,
    ReferenceBlock,
    ReferenceNet,
    assert_close,
    assert_ladder_equal,
    run_ladder,
)
from ladderize.testing.blocks import BlockSpec
from ladderize.testing.nets import NetSpec, ResidualNet, StageSpec
from ladderize.testing.strategies import conversions, nets

# -- the documentation


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(testing.__path__)])
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"{testing.__name__}.{name}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("name", sorted(set(testing.__all__) - {"TOLERANCE"}))
def test_each_public_name_has_an_example(name: str) -> None:
    assert ">>>" in getattr(testing, name).__doc__


# -- the recurrence by hand: h_i(x) = 10^(i+1) x, x[0] = 1


def powers(**fields: Any) -> list[ReferenceBlock]:
    return [ReferenceBlock(lambda x, i=i: 10 ** (i + 1) * x, **fields) for i in range(3)]


@pytest.mark.parametrize(
    ("chosen", "staleness", "expected"),
    [
        (None, 0, 11 * 101 * 1001),  # x + h_i(x) three times
        ([], 1, 11 * 101 * 1001),
        (None, 1, 11 + 100 + 1000 * 11),  # x1 = 11, x2 = 11 + h_1(1), x3 = x2 + h_2(x1)
        (None, 2, 11 + 100 + 1000),  # x3 = x2 + h_2(x0)
        (None, 9, 11 + 100 + 1000),
        ([0], 1, 11 * 101 * 1001),  # the first block has nothing earlier to read
        ([1], 1, (11 + 100) * 1001),
        ([2], 1, 11 * 101 + 1000 * 11),
        ([2], 2, 11 * 101 + 1000),
    ],
)
def test_recurrence_by_hand(chosen: list[int] | None, staleness: int, expected: int) -> None:
    x = torch.ones((), dtype=torch.float64)
    assert run_ladder(x, powers(), chosen=chosen, staleness=staleness).item() == expected


def test_stale_reads_are_of_anchors() -> None:
    """In a post-norm net blocks read what `after` made; here it is halving."""
    x = torch.ones((), dtype=torch.float64)
    x1 = 11 / 2
    x2 = (x1 + 100) / 2
    found = run_ladder(x, powers(after=lambda x: x / 2))
    assert found.item() == (x2 + 1000 * x1) / 2
    found = run_ladder(x, powers(before=lambda x: x / 2))  # a0 = 1/2, a1 = 11/4, ...
    a1 = 11 / 4
    a2 = (a1 + 50) / 2
    assert found.item() == a2 + 1000 * a1


def test_no_stale_read_crosses_a_segment() -> None:
    blocks = powers()
    blocks[1] = dataclasses.replace(blocks[1], starts_segment=True)
    x = torch.ones((), dtype=torch.float64)
    for staleness in (1, 2):
        found = run_ladder(x, blocks, staleness=staleness)
        assert found.item() == 11 * 101 + 1000 * 11


def test_skip_is_not_the_branch() -> None:
    x = torch.ones((), dtype=torch.float64)
    found = run_ladder(x, powers(skip=lambda x: 2 * x))
    assert found.item() == 2 * (2 * 12 + 100) + 1000 * 12


# -- the pieces against each other


@examples(10)
@given(nets())
def test_reference_without_staleness_is_the_module(spec: NetSpec) -> None:
    net = ResidualNet(spec)
    with torch.no_grad():
        standard = net.reference().run(*spec.make_args(), staleness=0)
        assert_close(standard, net(*spec.make_args()))


@examples(10)
@given(nets(), st.data())
def test_stale_reads_show(spec: NetSpec, data: st.DataObject) -> None:
    """What the properties below compare can tell a ladder from the standard model, by far."""
    conversion = data.draw(conversions(spec.num_blocks))
    segments = [i for stage in spec.stages for i, _ in enumerate(stage.blocks)]
    assume(conversion.staleness and any(segments[i] > 0 for i in conversion.chosen))
    net, args = ResidualNet(spec), spec.make_args()
    with torch.no_grad():
        standard = net.reference().run(*args, staleness=0)
        ladder = net.reference().run(
            *args, chosen=conversion.chosen, staleness=conversion.staleness
        )
    with pytest.raises(AssertionError, match="is off by"):
        assert_close(ladder, standard, tolerance=1000 * TOLERANCE[spec.dtype])


# -- assert_close


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (torch.tensor([1.0, 2.1]), "off by 0.1"),
        (torch.tensor([1.0, torch.nan]), "off by nan"),
        (torch.tensor([[1.0, 2.0]]), "shape"),
        (torch.tensor([1.0, 2.0]).double(), "dtype"),
        ((torch.tensor([1.0, 2.0]),), "structure"),
        ("x", "is 'x'"),
    ],
)
def test_what_is_not_equal(actual: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, torch.tensor([1.0, 2.0]))


def test_tolerance_grows_with_the_magnitude() -> None:
    expected = {"a": [torch.tensor([1000.0]), 3]}
    near = {"a": [torch.tensor([1000.005]), 3]}
    assert assert_close(near, expected) == pytest.approx(0.005, rel=0.05)
    with pytest.raises(AssertionError, match=r"output\['a'\]\[0\]"):
        assert_close(near, expected, tolerance=1e-7)


# -- assert_ladder_equal finds what is wrong


BLOCK = BlockSpec(norm="layer")
SPEC = NetSpec((StageSpec(((BLOCK,), (BLOCK,), (BLOCK,), (BLOCK,))),), dtype=torch.float64)


def test_a_right_model_passes() -> None:
    net = ResidualNet(SPEC)
    found = assert_ladder_equal(net, SPEC.make_args(), reference=net.reference())
    assert max(found.output, found.gradients) < 1e-12


@pytest.mark.parametrize(
    "options", [{"staleness": 2}, {"staleness": 0}, {"blocks": [0, 1, 2]}, {"blocks": [1, 2, 3]}]
)
def test_another_ladder_is_noticed(options: dict[str, Any]) -> None:
    """The backend is asked for another ladder than the reference computes."""
    net = ResidualNet(SPEC)
    chosen = range(3) if options == {"blocks": [1, 2, 3]} else range(4)
    with pytest.raises(AssertionError, match="output is off"):
        assert_ladder_equal(
            net, SPEC.make_args(), reference=net.reference(), chosen=chosen, options=options
        )


def test_a_wrong_gradient_is_noticed() -> None:
    net = ResidualNet(SPEC)
    reference = net.reference()

    def without_gradient(branch: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: branch(x.detach())

    blocks = [
        dataclasses.replace(block, branch=without_gradient(block.branch))
        for block in reference.blocks
    ]
    wrong = ReferenceNet(blocks, reference.entry, reference.head)
    with pytest.raises(AssertionError, match=r"gradient.* is off"):
        assert_ladder_equal(net, SPEC.make_args(), reference=wrong)
    assert_ladder_equal(net, SPEC.make_args(), reference=wrong, gradients=False)


def test_reads_instead_of_a_reference() -> None:
    """The hooks count the blocks that must be found."""
    net, args = ResidualNet(SPEC), SPEC.make_args()
    found = assert_ladder_equal(net, args, reads=["stage0.layers.*.block0.norms.0"], chosen=[1, 3])
    assert max(found.output, found.gradients) < 1e-12 < 1e-3 < found.standard
    with pytest.raises(LadderError, match="2 blocks were expected, 4 were found"):
        assert_ladder_equal(net, args, reads=["stage0.layers.[01].block0.norms.0"])
    for how in ({}, {"reads": ["norm"], "reference": net.reference()}):
        with pytest.raises(ValueError, match="one of reads= and reference="):
            assert_ladder_equal(net, args, **how)


def test_a_missing_block_is_noticed() -> None:
    net = ResidualNet(SPEC)
    reference = net.reference()
    wrong = ReferenceNet(reference.blocks[:-1], reference.entry, reference.head)
    with pytest.raises(LadderError, match="3 blocks were expected, 4 were found"):
        assert_ladder_equal(net, SPEC.make_args(), reference=wrong)
