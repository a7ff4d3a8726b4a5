import pytest
import torch
from helpers.graphs import Mlp, Residual, capture, streams_of
from torch import nn

from ladderize.errors import module_path
from ladderize.graph.to_aten import to_aten
from ladderize.passes.functionalize import Functionalize
from ladderize.streams.find import find_streams


class Wrapped(nn.Module):
    """`body` over a list of modules, for models with a short forward."""

    def __init__(self, body, *parts):
        super().__init__()
        self.body, self.parts = body, nn.ModuleList(parts)

    def forward(self, x):
        return self.body(self.parts, x)


def _linears(count, width=8):
    return [nn.Linear(width, width) for _ in range(count)]


@pytest.fixture
def x():
    return torch.randn(2, 5, 8)


@pytest.mark.parametrize(
    "combine",
    [
        torch.add,
        lambda x, h: h + x,
        lambda x, h: x.add(h),
        lambda x, h: x.add_(h),
        lambda x, h: x + 0.5 * h,
        lambda x, h: x + nn.functional.dropout(h, 0.1, False, True),
    ],
)
def test_spellings_of_the_add(combine, x):
    (stream,) = streams_of(Residual(combine=combine), x)
    assert [block.index for block in stream.blocks] == [0, 1, 2, 3]
    assert not stream.blockers


def test_each_block_reads_what_the_one_before_wrote(x):
    (stream,) = streams_of(Residual(), x)
    assert len(stream.blocks) == 4
    for before, block in zip(stream.blocks, stream.blocks[1:], strict=False):
        assert block.anchor is before.add
        assert block.skip is before.add
        assert all(block.anchor not in node.all_input_nodes for node in before.branch)


@pytest.mark.parametrize("order", ["left", "right"])
def test_parallel_branches_are_one_block(order, x):
    def body(parts, x):
        for a, b in zip(parts[::2], parts[1::2], strict=True):
            x = (x + a(x)) + b(x) if order == "left" else x + (a(x) + b(x))
        return x

    (stream,) = streams_of(Wrapped(body, *[Mlp() for _ in range(4)]), x)
    assert [len(block.outputs) for block in stream.blocks] == [2, 2]


def test_a_scaled_sum_of_branches_is_not_flattened(x):
    """Sharding writes a flattened sum anew, without the factor of a partial sum."""

    def body(parts, x):
        for a, b in zip(parts[::2], parts[1::2], strict=True):
            x = torch.add(x + a(x), b(x), alpha=0.5)
        return x

    streams = streams_of(Wrapped(body, *[Mlp() for _ in range(4)]), x)
    assert not any(block.partial_sums for stream in streams for block in stream.blocks)


def test_post_norm_blocks_are_one_segment(x):
    def body(parts, x):
        for linear, norm in zip(parts[::2], parts[1::2], strict=True):
            x = norm(x + torch.relu(linear(x)))
        return x

    parts = [m for linear in _linears(3) for m in (linear, nn.LayerNorm(8))]
    (stream,) = streams_of(Wrapped(body, *parts), x)
    assert [block.segment for block in stream.blocks] == [0, 0, 0]


def test_post_norm_anchor_is_the_normed_value(x):
    def body(parts, x):
        for linear, norm in zip(parts[::2], parts[1::2], strict=True):
            x = norm(x + torch.relu(linear(x)))
        return x

    parts = [m for linear in _linears(3) for m in (linear, nn.LayerNorm(8))]
    (stream,) = streams_of(Wrapped(body, *parts), x)
    assert len(stream.blocks) == 3
    assert [block.anchor.name.startswith("x") for block in stream.blocks[1:]] == [True, True]
    assert all(
        b.anchor is not a.add for a, b in zip(stream.blocks, stream.blocks[1:], strict=False)
    )


def test_gates_masks_and_positions_are_no_blocks(x):
    position = torch.randn(5, 8)

    def body(parts, x):
        x = x + position
        for linear, gate in zip(parts[::2], parts[1::2], strict=True):
            h = linear(x)
            h = h + h * torch.sigmoid(gate(h))
            x = x + h
        return x

    (stream,) = streams_of(Wrapped(body, *_linears(6)), x)
    assert len(stream.blocks) == 3


def test_reinjection_of_the_first_value_is_no_block(x):
    def body(parts, x):
        first = x = torch.tanh(x)
        for linear in parts:
            x = 0.9 * x + 0.1 * first
            x = x + linear(x)
        return x

    (stream,) = streams_of(Wrapped(body, *_linears(4)), x)
    assert len(stream.blocks) == 4


def test_group_skip_around_two_blocks_is_dropped(x):
    def body(parts, x):
        for a, b, out in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            inner = x + a(x)
            inner = inner + b(inner)
            x = x + out(inner)
        return x

    (stream,) = streams_of(Wrapped(body, *_linears(6)), x)
    assert [block.segment for block in stream.blocks] == [0, 0, 1, 1]


def test_a_stage_with_another_shape_is_another_segment(x):
    def body(parts, x):
        x = x + parts[0](x)
        x = x + parts[1](x)
        x = parts[2](x)
        x = x + parts[3](x)
        return x + parts[4](x)

    parts = [*_linears(2), nn.Linear(8, 4), *_linears(2, 4)]
    (stream,) = streams_of(Wrapped(body, *parts), x)
    assert [block.index for block in stream.blocks] == [0, 1, 2, 3]
    assert [block.segment for block in stream.blocks] == [0, 0, 1, 1]


def test_two_stacks_on_one_trunk_do_not_become_one_stream(x):
    def body(parts, x):
        for part in parts[:2]:
            x = x + part(x)
        left, right = parts[2](x), parts[3](x)
        for part in parts[4:6]:
            left = left + part(left)
        for part in parts[6:]:
            right = right + part(right)
        return left, right

    streams = streams_of(Wrapped(body, *_linears(8)), x)
    assert [len(stream.blocks) for stream in streams] == [4, 2]
    assert [block.segment for block in streams[0].blocks] == [0, 0, 1, 1]


def test_in_place_on_the_graph_input_is_refused(x):
    def body(parts, x):
        for linear in parts:
            x += linear(x)
        return x

    (stream,) = streams_of(Wrapped(body, *_linears(3)), x)
    assert len(stream.blockers) == 3
    assert "clone the input first" in str(stream.blockers[0])
    assert "test_find.py" in str(stream.blockers[0])


def test_in_place_on_a_viewed_stream_value_is_refused(x):
    def body(parts, x):
        x = torch.tanh(x)
        kept = x.view(-1)
        for linear in parts:
            x += linear(x)
        return x, kept.sum()

    (stream,) = streams_of(Wrapped(body, *_linears(3)), x)
    assert any("another view shares" in str(blocker) for blocker in stream.blockers)


def test_the_first_write_under_a_view_is_refused(x):
    """Nothing has read the view by then; what reads it later sees the write."""

    def body(parts, x):
        x = torch.tanh(x)
        kept = x.view(-1)
        x += parts[0](x)
        return x, kept.sum()

    (stream,) = streams_of(Wrapped(body, *_linears(1)), x)
    assert len(stream.blockers) == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_aten_graph_has_the_same_blocks(dynamic, x):
    gm, names = capture(Residual(), x, dynamic=dynamic)
    Functionalize()(gm)
    (stream,) = find_streams(gm, names)
    aten, carried = to_aten(gm, names)
    assert sorted(carried.values()) == sorted(names.values())
    (same,) = find_streams(aten, carried)
    assert [b.layer for b in same.blocks] == [b.layer for b in stream.blocks]
    assert [module_path(b.add) for b in same.blocks] == [b.module for b in stream.blocks]


def test_layers_are_the_indices_of_the_module_list(x):
    class Layer(Mlp):
        def forward(self, x):
            x = x + super().forward(x)
            return x + super().forward(x)

    (stream,) = streams_of(nn.Sequential(*[Layer() for _ in range(3)]), x)
    assert [block.layer for block in stream.blocks] == [0, 0, 1, 1, 2, 2]


def test_a_branch_under_vmap(x):
    """Values inside of a vmap have no storage by themselves."""

    def body(parts, x):
        for part in parts:
            x = x + torch.vmap(lambda row, part=part: part(row) * 2)(x)
        return x

    (stream,) = streams_of(Wrapped(body, *_linears(3)), x)
    assert len(stream.blocks) == 3


def test_layers_of_few_layers_with_more_sublayers(x):
    """As in T5: `block.0.layer.2` is in layer 0."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.ModuleList(Sublayer() for _ in range(3))

        def forward(self, x):
            for layer in self.layer:
                x = layer(x)
            return x

    class Sublayer(Mlp):
        def forward(self, x):
            return x + super().forward(x)

    (stream,) = streams_of(nn.Sequential(Block(), Block()), x)
    assert [block.layer for block in stream.blocks] == [0, 0, 0, 1, 1, 1]
