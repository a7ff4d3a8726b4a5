"""Branches with a skip of their own on what they read, as LAuReL in Gemma 3n: `x + (u + l(u))`.

Each form takes the state and what the branch reads of the stream: `form(parts, x, x)` is the
standard model, and the eager ladder calls the same form with an earlier state to read.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ladderize import LadderError, LadderWarning, rewrite
from ladderize.passes.functionalize import Functionalize
from ladderize.streams.find import find_streams
from ladderize.testing import assert_close

WIDTH, LAYERS = 8, 3


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.l, self.m = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.other, self.post = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))


Form = Callable[[Parts, Tensor, Tensor], Tensor]


def rms(p: Parts, x: Tensor) -> Tensor:
    return p.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def laurel(p: Parts, u: Tensor) -> Tensor:
    return u + p.l(u)


def of_normed(spell: Form) -> Form:
    return lambda p, x, read: spell(p, x, p.norm(read))


def of_read(make: Callable[[Parts, Tensor], Tensor]) -> Form:
    return lambda p, x, read: (0.7 * x) + laurel(p, make(p, read))


FORMS: dict[str, Form] = {
    "x + (u + l)": of_normed(lambda p, x, u: x + laurel(p, u)),
    "(l + u) + x": of_normed(lambda p, x, u: (p.l(u) + u) + x),
    "(x + u) + l": of_normed(lambda p, x, u: (x + u) + p.l(u)),
    "(x + a) + u": of_normed(lambda p, x, u: (x + p.a(u)) + u),
    "(x + a) + (u + l)": of_normed(lambda p, x, u: (x + p.a(u)) + laurel(p, u)),
    "x + (a + (u + l))": of_normed(lambda p, x, u: x + (p.a(u) + laurel(p, u))),
    "x + 0.3 (u + l)": of_normed(lambda p, x, u: x + 0.3 * laurel(p, u)),
    "x + 0.5 (norm(u + l) + a)": of_normed(
        lambda p, x, u: x + 0.5 * (p.post(laurel(p, u)) + p.a(u))
    ),
    "x + norm(u + l)": of_normed(lambda p, x, u: x + p.post(laurel(p, u))),
    "norm(x + (u + l))": of_normed(lambda p, x, u: p.post(x + laurel(p, u))),
    "0.7 x + (0.3 u + l)": of_normed(lambda p, x, u: 0.7 * x + (0.3 * u + p.l(u))),
    "gemma 3n": of_normed(
        lambda p, x, u: ((x + p.post(p.a(u))) + (u + p.other(p.l(u)))) / 2**0.5,
    ),
    "u = rms(x)": of_read(rms),
    "u = 0.5 x": of_read(lambda _, x: 0.5 * x),
    "u = dropout(x)": of_read(lambda _, x: torch.native_dropout(x, 0.3, False)[0]),
    "u = x gate": of_read(lambda p, x: x * torch.sigmoid(p.gain)),
    "u = x.to": of_read(lambda _, x: x.to(torch.float32).to(torch.float64)),
    "u = modulated": of_read(lambda p, x: p.norm(x) * (1 + p.gain) + p.gain),
    "two norms": lambda p, x, read: x + (p.norm(read) + p.l(p.other(read))),
    "two norms, scaled": lambda p, x, read: p.norm(read) + (0.7 * x + p.l(p.other(read))),
    "two norms, a scaled branch": lambda p, x, read: x + 0.3 * (p.norm(read) + p.l(p.other(read))),
    "two scales": lambda p, x, read: 0.7 * x + (0.5 * read + p.l(p.other(read))),
}


class Net(nn.Module):
    """Layers of one block of that form, and of an MLP if asked."""

    def __init__(self, form: Form, *, has_mlp: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.has_mlp = form, has_mlp
        self.layers = nn.ModuleList(Parts() for _ in range(LAYERS))

    def blocks(self, p: Parts) -> Sequence[Callable[[Tensor, Tensor], Tensor]]:
        mlp = [lambda x, read: x + p.m(torch.tanh(p.other(read)))]
        return [lambda x, read: self.form(p, x, read), *(mlp if self.has_mlp else [])]

    def forward(self, x: Tensor, staleness: int = 0) -> Tensor:
        states = [x]
        for block in (block for p in self.layers for block in self.blocks(p)):
            states.append(block(states[-1], states[max(len(states) - 1 - staleness, 0)]))
        return states[-1]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_own_skip_is_as_stale_as_its_branch(form: Form, x: Tensor) -> None:
    net = Net(form, has_mlp=True).double()
    with torch.no_grad():
        ladder = rewrite(make_fx(net)(x), (x,), expect_blocks=2 * LAYERS)
        assert_close(ladder(x), net(x, staleness=1))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_ladder_of_them_is_left_alone(form: Form, x: Tensor) -> None:
    net = Net(form).double()
    with torch.no_grad():
        gm = make_fx(lambda x: net(x, staleness=1))(x)
        with pytest.warns(LadderWarning, match=f"with {LAYERS - 1} stale blocks"):
            assert_close(rewrite(gm, (x,), expect_blocks=LAYERS)(x), net(x, staleness=1))


@pytest.mark.parametrize("form", ["x + (u + l)", "gemma 3n", "two norms"])
def test_a_ladder_two_blocks_stale_is_left_alone(form: str, x: Tensor) -> None:
    net = Net(FORMS[form], has_mlp=True).double()
    with torch.no_grad():
        gm = make_fx(lambda x: net(x, staleness=2))(x)
        with pytest.warns(LadderWarning, match=f"with {2 * LAYERS - 1} stale blocks"):
            assert_close(rewrite(gm, (x,), expect_blocks=2 * LAYERS)(x), net(x, staleness=2))


def test_a_scaled_skip_beside_the_stream_itself(x: Tensor) -> None:
    net = Net(lambda p, x, read: 0.7 * x + (x + p.l(read))).double()
    with torch.no_grad():
        ladder = rewrite(make_fx(net)(x), (x,), expect_blocks=LAYERS)
        assert_close(ladder(x), net(x, staleness=1))


def test_a_skip_of_the_stream_itself_carries_it(x: Tensor) -> None:
    net = Net(lambda p, x, read: x + 0.5 * (x + p.l(p.norm(read)))).double()
    with torch.no_grad():
        ladder = rewrite(make_fx(net)(x), (x,), expect_blocks=LAYERS)
        assert_close(ladder(x), net(x, staleness=1))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_two_linked_blocks_in_a_branch_are_two_blocks(scale: float, x: Tensor) -> None:
    def form(p: Parts, x: Tensor, read: Tensor) -> Tensor:
        v = laurel(p, p.norm(read))
        inner = v + p.m(p.other(v))
        return x + (inner if scale == 1 else scale * inner)

    gm = make_fx(Net(form).double())(x)
    Functionalize()(gm)
    (stream,) = find_streams(gm)
    assert len(stream.blocks) == 2 * LAYERS


def test_what_follows_a_block_must_not_read_in_its_branch(x: Tensor) -> None:
    def form(p: Parts, x: Tensor, read: Tensor) -> Tensor:
        u = p.norm(read)
        return (x + p.l(u)) * torch.sigmoid(u)

    with torch.no_grad(), pytest.raises(LadderError, match="what follows block 0 reads") as caught:
        rewrite(make_fx(Net(form).double())(x), (x,))
    assert len(caught.value.blockers) == LAYERS - 1
