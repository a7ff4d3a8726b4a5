"""Values that reach a reader through memory: buffers filled in place, caches, custom ops."""

from itertools import product

import pytest
import torch
from helpers.graphs import capture
from torch import Tensor, nn

from ladderize.graph.dataflow import find_sources, find_writes
from ladderize.testing import assert_ladder_equal


@torch.library.custom_op("ladderize_tests::fill", mutates_args={"out"})
def fill(value: Tensor, out: Tensor) -> None:
    out.copy_(value)


@fill.register_fake
def _(value: Tensor, out: Tensor) -> None:
    pass


def by_setitem(value, out):
    for i in range(value.shape[1]):
        out[:, i] = value[:, i]


def by_index_copy(value, out):
    out.index_copy_(1, torch.arange(value.shape[1]), value)


def by_view(value, out):
    out.view(-1, 8).copy_(value.reshape(-1, 8))


WRITES = {
    "setitem": by_setitem,
    "index_copy_": by_index_copy,
    "view": by_view,
    "custom op": fill,
    "packet": torch.ops.ladderize_tests.fill,  # as vLLM calls its attention
}


MAKES = {
    "zeros": lambda x: torch.zeros(x.shape),
    "new_zeros": lambda x: x.new_zeros(x.shape),
    "zeros_like": torch.zeros_like,
}
ENDS = {
    "gated": lambda out, gate: gate * out,
    "direct": lambda out, gate: out,  # noqa: ARG005
    "both": lambda out, gate: out + gate,
}


class Layer(nn.Module):
    """Two reads of the stream: one of them comes to the sum only through memory."""

    def __init__(self, write, make, end):
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.write, self.make, self.end = write, make, end

    def forward(self, x):
        out = self.make(x)
        self.write(self.left(x), out)
        return x + self.end(out, torch.sigmoid(self.right(x)))


# In every run each write, and each way to make and to use the buffer; under --deep all of each.
EVERY_RUN = [
    *((write, "zeros", "gated") for write in WRITES),
    *(("setitem", make, "direct") for make in MAKES),
    ("setitem", "zeros", "both"),
]


@pytest.mark.parametrize(
    ("write", "make", "end"),
    [
        pytest.param(*case, marks=[] if case in EVERY_RUN else [pytest.mark.deep])
        for case in product(WRITES, MAKES, ENDS)
    ],
)
def test_what_is_written_into_a_buffer_is_read_stale(write, make, end):
    model = nn.Sequential(*[Layer(WRITES[write], MAKES[make], ENDS[end]) for _ in range(4)])
    x = torch.randn(2, 5, 8)
    found = assert_ladder_equal(model, (x,), reads=["*.left", "*.right"], gradients=False)
    assert found.standard > 1e-2


def test_caches_of_the_model_are_read_stale():
    """Like a StaticCache: keys from x itself are written into a buffer and read from there."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)
            self.register_buffer("keys", torch.zeros(2, 9, 8))

        def forward(self, x):
            self.keys.index_copy_(1, torch.arange(x.shape[1]), self.k(x))
            return self.norm(x + torch.softmax(self.q(x) @ self.keys.mT, -1) @ self.keys)

    model = nn.Sequential(*[Attention() for _ in range(4)])
    found = assert_ladder_equal(
        model, (torch.randn(2, 5, 8),), reads=["*.q", "*.k"], gradients=False
    )
    assert found.standard > 1e-2


def test_the_last_write_before_a_reader_is_its_source():
    def net(x):
        out = torch.zeros(3)
        early = out + 1
        out[0] = x
        out[1] = 2 * x
        return early, out.sin()

    gm, _ = capture(net, torch.ones(()))
    sources = find_sources(gm.graph.nodes, find_writes(gm.graph.nodes))
    named = {node.name: node for node in gm.graph.nodes}
    assert named["setitem"] not in sources[named["early"]]
    assert named["setitem"] in sources[named["setitem_1"]]
    assert named["setitem_1"] in sources[named["sin"]]
    assert named["setitem"] not in sources[named["sin"]]
