"""Hypothesis strategies for residual models and for the blocks to convert.

    @given(net=nets(), data=st.data())
    def test(net, data):
        conversion = data.draw(conversions(net.num_blocks))

Needs `hypothesis` (the extra `test`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from ladderize.testing.blocks import AFTER, OVERWRITES_X, SPELLINGS, WRAPS_THE_SUM, BlockSpec
from ladderize.testing.branches import KINDS, NORMS, BranchSpec
from ladderize.testing.nets import TRANSITIONS, NetSpec, StageSpec

PLACEMENTS = ("pre", "post", "shared")


@dataclass(frozen=True)
class Conversion:
    """Options of the backend, and the blocks that they choose.

    Attributes:
        blocks: value of the option `blocks`.
        chosen: indices that it chooses.
        staleness: value of the option `staleness`.
    """

    blocks: str | list[int]
    chosen: frozenset[int]
    staleness: int = 1


def branches(own_skips: bool = False) -> st.SearchStrategy[BranchSpec]:
    """A branch; if `own_skips`, it may have its own skip."""
    return st.builds(
        BranchSpec,
        kind=st.sampled_from(sorted(KINDS, key="mlp".__ne__)),
        gated=st.booleans(),
        mask=st.sampled_from(["none", "causal", "fused"]),
        rotary=st.booleans(),
        layer_scale=st.booleans(),
        out_norm=st.sampled_from(list(NORMS)),
        own_skip=st.booleans() if own_skips else st.just(False),
    )


@st.composite
def blocks(
    draw: st.DrawFn,
    spellings: Sequence[str] = tuple(SPELLINGS),
    placements: Sequence[str] = PLACEMENTS,
) -> BlockSpec:
    """A block, parallel or not, in one of `spellings`; its norm in one of `placements`."""
    spelling = draw(st.sampled_from(spellings))
    associations = ["x+(a+m)", "(x+a)+m", "x+a, m"]
    if spelling in OVERWRITES_X:
        associations.pop()  # the second branch would read what the first sum has overwritten
    if spelling in WRAPS_THE_SUM:
        del associations[1:]  # a cast or a view between the two sums splits the block
    norm, placement = draw(st.sampled_from(list(NORMS))), draw(st.sampled_from(placements))
    # Otherwise a branch reads the stream itself, or its result and the skip differ in form.
    has_own = norm != "none" and placement == "pre" and spelling not in WRAPS_THE_SUM
    return BlockSpec(
        branches=tuple(draw(st.lists(branches(own_skips=has_own), min_size=1, max_size=2))),
        norm=norm,
        placement=placement,
        separate_norms=draw(st.booleans()),
        spelling=spelling,
        association=draw(st.sampled_from(associations)),
        branch_scale=draw(st.sampled_from([1.0, 0.5])),
        skip_scale=draw(st.sampled_from([1.0, 0.8])),
        after=draw(st.sampled_from(list(AFTER))),
        conditioned=draw(st.booleans()),
    )


@st.composite
def stages(
    draw: st.DrawFn,
    width_before: int | None = None,
    max_layers: int = 3,
    spellings: Sequence[str] = tuple(SPELLINGS),
    placements: Sequence[str] = PLACEMENTS,
) -> StageSpec:
    transition = draw(st.sampled_from(list(TRANSITIONS)))
    layer = st.lists(blocks(spellings, placements), min_size=1, max_size=2).map(tuple)
    layers = tuple(draw(st.lists(layer, min_size=1, max_size=max_layers)))
    if width_before is None and layers[1:] == () and len(layers[0]) == 1:
        layers = 2 * layers  # the backend refuses a single block, which has no stale read
    shared = draw(st.booleans())
    if shared:
        layers = len(layers) * layers[:1]
    return StageSpec(
        layers=layers,
        width=width_before if width_before and transition == "slice" else draw(_WIDTHS),
        transition=transition,
        unrolled=draw(st.booleans()),
        shared=shared,
    )


_WIDTHS = st.sampled_from([8, 12, 32])


@st.composite
def nets(
    draw: st.DrawFn,
    *,
    max_stages: int = 2,
    max_layers: int = 3,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    spellings: Sequence[str] = tuple(SPELLINGS),
    placements: Sequence[str] = PLACEMENTS,
) -> NetSpec:
    """A model of up to `max_stages * max_layers` layers of one or two blocks each.

    In bfloat16, keep it shallow: over many blocks, the rounding difference between `(x + a) + m`
    and `x + (a + m)` grows to the size of a wrong read.
    """
    found = [draw(stages(None, max_layers, spellings, placements))]
    for _ in range(draw(st.integers(0, max_stages - 1))):
        found.append(draw(stages(found[-1].width, max_layers, spellings, placements)))
    first = found[0].layers[0][0]
    entries = ["linear", "embedding", "positions", "identity"]
    if first.spelling in OVERWRITES_X:
        entries.remove("identity")  # the caller's tensor would be overwritten
    return NetSpec(
        stages=tuple(found),
        entry=draw(st.sampled_from(entries)),
        final_norm=draw(st.sampled_from(list(NORMS))),
        head=draw(st.sampled_from(["none", "linear", "mean"])),
        dtype=draw(st.sampled_from(dtypes)),
        batch=draw(st.sampled_from([2, 3, 1])),
        length=draw(st.integers(3, 6)),
        returns_all=draw(st.booleans()),
        has_dead_code=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def conversions(draw: st.DrawFn, num_blocks: int, staleness: int | None = None) -> Conversion:
    """A choice among `num_blocks` blocks in one of the forms of `blocks=`."""
    everything = range(num_blocks)
    spelling = draw(st.sampled_from(["all", "list", "last", "percent", "range"]))
    first = draw(st.integers(0, num_blocks - 1))
    asked: str | list[int] = "all"
    chosen = frozenset(everything)
    if spelling == "list":
        asked = draw(st.lists(st.sampled_from(everything), min_size=1, unique=True))
        chosen = frozenset(asked)
    elif spelling == "range":
        stop = draw(st.integers(first + 1, num_blocks))
        asked, chosen = f"{first}:{stop}", frozenset(range(first, stop))
    elif spelling != "all":
        count = num_blocks - first
        asked = f"last:{count}" if spelling == "last" else f"last:{100 * count / num_blocks:.3f}%"
        chosen = frozenset(range(first, num_blocks))
    if staleness is None:
        staleness = draw(st.sampled_from([1, 2, 3, 0]))
    return Conversion(asked, chosen, staleness)
