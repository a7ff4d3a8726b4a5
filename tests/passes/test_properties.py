"""Random residual models: the rewritten model equals the eager reference, also in gradients.

Dynamo captures the examples of `test_any_net`. Those of `test_any_traced_net` take a third of the
time: make_fx traces them, and they are rewritten as ATen graphs. In float64, no noise hides a wrong
read.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.few_examples import examples
from hypothesis import currently_in_test_context, given, note
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ladderize import rewrite
from ladderize.errors import LadderError
from ladderize.testing import (
    ReferenceBlock,
    ReferenceNet,
    assert_close,
    assert_ladder_equal,
    run_with_gradients,
)
from ladderize.testing.blocks import OVERWRITES_X, SPELLINGS, WRAPS_THE_SUM, BlockSpec
from ladderize.testing.branches import BranchSpec, Mlp
from ladderize.testing.nets import NetSpec, ResidualNet, StageSpec
from ladderize.testing.strategies import PLACEMENTS, Conversion, blocks, conversions, nets


def check(spec: NetSpec, conversion: Conversion, **how: Any) -> None:
    if currently_in_test_context():
        note(reproducer(spec, conversion, how))  # printed for the smallest example that fails
    torch._dynamo.reset()
    net = ResidualNet(spec)
    assert_ladder_equal(
        net,
        spec.make_args(),
        reference=net.reference(),
        chosen=conversion.chosen,
        staleness=conversion.staleness,
        options={"blocks": conversion.blocks},
        **how,
    )


def check_traced(spec: NetSpec, conversion: Conversion) -> None:
    """The same without Dynamo and the backend."""
    net, args = ResidualNet(spec), spec.make_args()
    how = {"staleness": conversion.staleness}
    with torch.no_grad():
        traced = make_fx(net, pre_dispatch=True)(*spec.make_args())
    ladder = rewrite(traced, args, blocks=conversion.blocks, expect_blocks=spec.num_blocks, **how)

    def reference(*args: Tensor) -> Any:
        return net.reference().run(*args, chosen=conversion.chosen, **how)

    found = run_with_gradients(ladder, net, args)
    assert_close(found, run_with_gradients(reference, net, args))


def reproducer(spec: NetSpec, conversion: Conversion, how: dict[str, Any]) -> str:
    """A program that checks a single model; its PYTHONPATH is tests:tests/passes."""
    return f"""
import torch
from test_properties import *

check(
    {spec!r},
    {conversion!r},
    **{how!r},
)
"""


def test_the_reproducer_is_a_program_that_fails() -> None:
    spec = NetSpec((StageSpec(((BlockSpec(norm="rms"),), (BlockSpec(),))),), dtype=torch.float64)
    exec(reproducer(spec, Conversion("all", frozenset({0, 1})), {"gradients": False}), {})
    wrong = reproducer(spec, Conversion("all", frozenset({0})), {"gradients": False})
    with pytest.raises(AssertionError, match="output is off by"):
        exec(wrong, {})


def chain(*specs: BlockSpec, **net: Any) -> NetSpec:
    """One stage of layers of one block each."""
    return NetSpec((StageSpec(tuple((spec,) for spec in specs)),), **net)


# -- compiled = reference


DTYPES = [torch.float64]
DEEP = pytest.mark.deep


@pytest.mark.parametrize("placement", PLACEMENTS)
@examples(2)
@given(data=st.data())
def test_any_net(placement: str, data: st.DataObject) -> None:
    spec = data.draw(nets(max_layers=2, dtypes=DTYPES, placements=[placement]))
    check(spec, data.draw(conversions(spec.num_blocks)))


@pytest.mark.parametrize("placement", PLACEMENTS)
@examples(3)
@given(data=st.data())
def test_any_traced_net(placement: str, data: st.DataObject) -> None:
    spec = data.draw(nets(max_layers=2, dtypes=DTYPES, placements=[placement]))
    check_traced(spec, data.draw(conversions(spec.num_blocks)))


def test_a_traced_norm_that_casts_twice() -> None:
    """A trace has the casts as values one after the other, and the skip as a read of the last."""
    spec = chain(*3 * [BlockSpec(norm="rms")], dtype=torch.float64)
    check_traced(spec, Conversion("all", frozenset(range(3))))


@pytest.mark.deep
@examples(2)
@given(nets(max_layers=2, dtypes=DTYPES), st.data())
def test_any_net_through_aot(spec: NetSpec, data: st.DataObject) -> None:
    check(spec, data.draw(conversions(spec.num_blocks)), lowering="aot_eager")


@pytest.mark.deep
@examples(1)
@given(data=st.data())
def test_float32(data: st.DataObject) -> None:
    spec = data.draw(nets(dtypes=[torch.float32], max_stages=1, max_layers=2))
    check(spec, data.draw(conversions(spec.num_blocks)))


@examples(2)
@given(nets(dtypes=[torch.bfloat16], max_stages=1, max_layers=2), st.data())
def test_bfloat16(spec: NetSpec, data: st.DataObject) -> None:
    check(spec, data.draw(conversions(spec.num_blocks)))


@examples(2)
@given(nets(spellings=sorted(OVERWRITES_X), max_layers=2, dtypes=DTYPES), st.data())
def test_streams_written_in_place(spec: NetSpec, data: st.DataObject) -> None:
    check(spec, data.draw(conversions(spec.num_blocks)))


@pytest.mark.deep
@examples(2)
@given(nets(max_layers=2, dtypes=DTYPES), st.data())
def test_dynamic_shapes(spec: NetSpec, data: st.DataObject) -> None:
    """One compilation serves two batch sizes, and computes the ladder at both."""
    conversion = data.draw(conversions(spec.num_blocks))
    torch._dynamo.reset()
    net = ResidualNet(spec)
    compiled = torch.compile(
        net,
        backend="ladderize",
        fullgraph=True,
        dynamic=True,
        options={
            "blocks": conversion.blocks,
            "staleness": conversion.staleness,
            "lowering": "eager",
        },
    )

    def reference(*args: Tensor) -> Any:
        how = {"chosen": conversion.chosen, "staleness": conversion.staleness}
        return net.reference().run(*args, **how)

    for batch, stance in ((2, "default"), (5, "fail_on_recompile")):
        args = spec.make_args(batch)
        with torch.compiler.set_stance(stance):
            found = run_with_gradients(compiled, net, args)
        assert_close(found, run_with_gradients(reference, net, args))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_of_the_sum(spelling: str) -> None:
    """Of one branch and, where the spelling allows it, of two branches in either association."""
    two = (BranchSpec(), BranchSpec("attention", mask="causal"))
    specs = [BlockSpec(spelling=spelling, norm="rms"), BlockSpec(two, spelling=spelling)]
    if spelling not in WRAPS_THE_SUM:
        specs.append(BlockSpec(two, spelling=spelling, association="(x+a)+m"))
    spec = chain(*specs)
    check(spec, Conversion("all", frozenset(range(spec.num_blocks))))


DISTRACTORS = {
    "gate": BranchSpec(gated=True),
    "mask": BranchSpec("attention", mask="causal"),
    "rotary": BranchSpec("attention", rotary=True),
    "all of them": BranchSpec("attention", mask="causal", rotary=True, gated=True),
}


@pytest.mark.parametrize("entry", ["embedding", pytest.param("positions", marks=DEEP)])
@pytest.mark.parametrize("branch", DISTRACTORS.values(), ids=DISTRACTORS)
def test_other_adds_are_no_blocks(branch: BranchSpec, entry: str) -> None:
    """`assert_ladder_equal` has the backend expect exactly the blocks of the reference."""
    block = BlockSpec((branch,), norm="rms", branch_scale=0.5)
    spec = chain(block, block, block, entry=entry, head="linear")
    check(spec, Conversion("last:2", frozenset({1, 2}), 1))


@pytest.mark.parametrize("transition", ["linear", "projected skip", "slice", "convolution"])
@pytest.mark.parametrize("staleness", [pytest.param(1, marks=DEEP), 3])
def test_staleness_never_crosses_a_change_of_shape(transition: str, staleness: int) -> None:
    layers = ((BlockSpec(norm="layer"),),) * 2
    later = StageSpec(layers, width=8 if transition == "slice" else 12, transition=transition)
    spec = NetSpec((StageSpec(layers), later, later))
    check(spec, Conversion("all", frozenset(range(6)), staleness))


class Groups(torch.nn.Module):
    """`x = r + scale * blocks(r)` around two blocks, twice: the outer sum is a `T`, no block."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.layers = torch.nn.ModuleList([Mlp(8) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for first, second in (self.layers[:2], self.layers[2:]):
            entry = x
            x = x + first(x)
            x = x + second(x)
            x = entry + (x if self.scale == 1 else self.scale * x)
        return x

    def reference(self) -> ReferenceNet:
        entries: list[Tensor] = []

        def enter(x: Tensor) -> Tensor:
            entries.append(x)
            return x

        def leave(x: Tensor) -> Tensor:
            return entries[-1] + self.scale * x

        pairs = (
            (ReferenceBlock(first, before=enter), ReferenceBlock(second, after=leave))
            for first, second in (self.layers[:2], self.layers[2:])
        )
        return ReferenceNet([block for pair in pairs for block in pair])


@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("scale", [0.9, 1.0])
def test_a_skip_around_blocks_is_no_block(scale: float, staleness: int) -> None:
    torch.manual_seed(0)
    net = Groups(scale)
    assert_ladder_equal(net, (torch.randn(2, 8),), reference=net.reference(), staleness=staleness)


class AddingUNet(torch.nn.Module):
    """Values of the first half are added to the second half: `x = x + kept.pop()` is a `T`."""

    def __init__(self, *, kept_first: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Mlp(8) for _ in range(6)])
        self.kept_first = kept_first

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for number, layer in enumerate(self.layers):
            if number >= 3:
                x = kept.pop() + x if self.kept_first else x + kept.pop()
            x = x + layer(x)
            if number < 3:
                kept.append(x)
        return x

    def reference(self) -> ReferenceNet:
        kept: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            kept.append(x)
            return x

        def take(x: Tensor) -> Tensor:
            return x + kept.pop()

        down = [ReferenceBlock(layer, after=keep) for layer in self.layers[:3]]
        up = [ReferenceBlock(layer, before=take) for layer in self.layers[3:]]
        return ReferenceNet([*down, *up])


@pytest.mark.parametrize("kept_first", [True, False])
def test_the_skips_of_an_adding_unet_swallow_no_block(kept_first: bool) -> None:
    torch.manual_seed(0)
    net = AddingUNet(kept_first=kept_first)
    assert_ladder_equal(net, (torch.randn(2, 8),), reference=net.reference())


# -- layers


@examples(1)
@given(st.lists(blocks(), min_size=2, max_size=3), st.data())
def test_layers_of_a_module_list(specs: list[BlockSpec], data: st.DataObject) -> None:
    """`layers=` of a list whose layers hold two blocks each."""
    stage = StageSpec(tuple((spec, BlockSpec(norm="rms")) for spec in specs))
    layers = data.draw(conversions(len(specs), staleness=1))
    chosen = frozenset(2 * i + j for i in layers.chosen for j in (0, 1))
    torch._dynamo.reset()
    spec = NetSpec((stage,))
    net = ResidualNet(spec)
    options = {"layers": layers.blocks}
    compiled = torch.compile(
        net, backend="ladderize", fullgraph=True, options={**options, "lowering": "eager"}
    )
    found = run_with_gradients(compiled, net, spec.make_args())
    wanted = run_with_gradients(
        lambda *args: net.reference().run(*args, chosen=chosen), net, spec.make_args()
    )
    assert_close(found, wanted)


def test_layers_of_an_unrolled_net_are_refused() -> None:
    stage = StageSpec(((BlockSpec(),),) * 3, unrolled=True)
    spec = NetSpec((stage,))
    compiled = torch.compile(
        ResidualNet(spec),
        backend="ladderize",
        options={"layers": "last:1", "lowering": "eager"},
    )
    with pytest.raises(LadderError, match="module list"):
        compiled(*spec.make_args())


# -- what must be refused rather than computed wrongly


def refused_or_right(spec: NetSpec) -> None:
    with contextlib.suppress(LadderError):
        check(spec, Conversion("all", frozenset(range(spec.num_blocks))))


@pytest.mark.parametrize("spelling", sorted(WRAPS_THE_SUM))
def test_a_second_read_of_the_stream_behind_the_sum(spelling: str) -> None:
    """`x = cast(x + a(x)); x = x + m(old x)`: block 1 reads what block 0 has read."""
    two = BlockSpec((BranchSpec(), BranchSpec()), spelling=spelling, association="x+a, m")
    refused_or_right(chain(two, two, two))


@pytest.mark.parametrize("spelling", sorted(OVERWRITES_X))
def test_an_input_that_the_stream_overwrites(spelling: str) -> None:
    block = BlockSpec(spelling=spelling, norm="rms")
    spec = chain(block, block, block, entry="identity")
    with pytest.raises(LadderError, match="in place"):
        check(spec, Conversion("all", frozenset({0, 1, 2})), gradients=False)


class OddSums(torch.nn.Module):
    """Four blocks; every other one adds by `add`."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Mlp(8) for _ in range(4)])
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = self.add(x, layer(x)) if number % 2 else x + layer(x)
        return x


@pytest.mark.parametrize(
    "add",
    [
        lambda x, h: torch.add(x, h, alpha=1.0),
        lambda x, h: sum([x, h]),
        lambda x, h: torch.add(x, 2 * h, alpha=0.5),
        lambda x, h: torch.add(x, other=h),
        lambda x, h: x - (-h),
        lambda x, h: torch.sub(x, h, alpha=-1),
        lambda x, h: x.sub_(-h),
        lambda x, h: torch.addcmul(x, h, torch.ones(8)),
        lambda x, h: torch.addmm(x, h, torch.eye(8)),
        lambda x, h: torch.baddbmm(x[None], h[None], torch.eye(8)[None])[0],
    ],
    ids="alpha=1 sum alpha other= sub sub_alpha sub_ addcmul addmm baddbmm".split(),
)
def test_sums_in_odd_spellings(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = OddSums(add)
    reference = ReferenceNet([ReferenceBlock(layer) for layer in net.layers])
    assert_ladder_equal(net, (torch.randn(2, 8),), reference=reference)


def test_a_size_is_no_read_of_the_stream() -> None:
    """With dynamic shapes the branch ends in `h.reshape(-1, (0.8 * x).shape[-1])`.

    Taken for a read, `0.8 * x` would be the anchor of block 0.
    """
    block = BlockSpec(spelling="x.reshape(-1, w) + h", skip_scale=0.8)
    everything = Conversion("all", frozenset({0, 1, 2}))
    check(chain(block, block, block, entry="identity"), everything, dynamic=True)
