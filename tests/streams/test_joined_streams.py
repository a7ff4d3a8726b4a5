"""Blocks on joined text and image that are split again: Flux's single blocks, and others."""

import warnings

import pytest
import torch
from helpers.graphs import Mlp
from torch import nn
from torch.export import Dim, export

from ladderize import LadderWarning, rewrite
from ladderize.testing import assert_close

WIDTH, TEXT, IMAGE = 8, 4, 4


class Joined(nn.Module):
    """`join`s text and image, adds to both, `cut`s them apart; block after block."""

    def __init__(self, cut=None, after=None, blocks=4):
        super().__init__()
        self.branches = nn.ModuleList(Mlp() for _ in range(blocks))
        self.cut = cut or (lambda z, k: (z[:, :k], z[:, k:]))
        self.after = after or (lambda z: z)

    def forward(self, c, x):
        for branch in self.branches:
            z = torch.cat([c, x], 1)
            z = self.after(z + branch(z))
            c, x = self.cut(z, c.shape[1])
        return x

    def ladder(self, c, x):
        read = state = torch.cat([c, x], 1)
        for branch in self.branches:
            read, state = state, self.after(state + branch(read))
        return self.cut(state, c.shape[1])[1]


CUTS = {
    "slices": lambda z, k: (z[:, :k], z[:, k:]),
    "slices in an order of their own": lambda z, k: (z[:, k:], z[:, :k])[::-1],
    "slices from the end": lambda z, _: (z[:, :-IMAGE], z[:, -IMAGE:]),
    "split": lambda z, k: z.split([k, z.shape[1] - k], 1),
    "chunk": lambda z, _: torch.chunk(z, 2, dim=1),
    "narrow": lambda z, k: (z.narrow(1, 0, k), torch.narrow(z, 1, k, z.shape[1] - k)),
}


@pytest.fixture
def inputs():
    return torch.randn(2, TEXT, WIDTH), torch.randn(2, IMAGE, WIDTH)


def ladder_of(net, inputs, blocks, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", LadderWarning)
        return rewrite(export(net, inputs, **options), expect_blocks=blocks).module()


def test_what_is_cut_and_joined_again_is_one_stream(inputs):
    """In every spelling; one program holds them all."""
    nets = nn.ModuleList(Joined(cut, blocks=2) for cut in CUTS.values())
    nets.append(Joined(after=torch.tanh, blocks=2))

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = nets

        def forward(self, c, x):
            return [net(c, x) for net in self.nets]

    found = ladder_of(All(), inputs, 2 * len(nets))(*inputs)
    for name, net, mine in zip([*CUTS, "another T"], nets, found, strict=True):
        assert_close(mine, net.ladder(*inputs), what=name)


def test_of_any_length(inputs):
    net, shapes = Joined(blocks=2), ({1: Dim.DYNAMIC}, {1: Dim.DYNAMIC})
    ladder = ladder_of(net, inputs, 2, dynamic_shapes=shapes)
    for text, image in ((TEXT, IMAGE), (3, 7)):
        others = torch.randn(2, text, WIDTH), torch.randn(2, image, WIDTH)
        assert_close(ladder(*others), net.ladder(*others))


class Hybrid(nn.Module):
    """A block on both, then one on each (SD3, with its sum ahead of the cut)."""

    def __init__(self, layers=2):
        super().__init__()
        self.both, self.text, self.image = (
            nn.ModuleList(Mlp() for _ in range(layers)) for _ in range(3)
        )
        self.beside = nn.ModuleList(Mlp() for _ in range(layers))

    def forward(self, c, x):
        for both, beside, text, image in self.layers():
            z = torch.cat([c, x], 1)
            c, x = ((z + both(z)) + beside(z)).split([TEXT, IMAGE], 1)
            c, x = c + text(c), x + image(x)
        return c, x

    def layers(self):
        return zip(self.both, self.beside, self.text, self.image, strict=True)

    def ladder(self, c, x):
        old_c, old_x = c, x
        for both, beside, text, image in self.layers():
            z = torch.cat([old_c, old_x], 1)
            h = both(z) + beside(z)
            old_c, old_x, c, x = c, x, c + h[:, :TEXT], x + h[:, TEXT:]
            old_c, old_x, c, x = c, x, c + text(old_c), x + image(old_x)
        return c, x


def test_blocks_of_both_and_blocks_of_each_take_turns(inputs):
    net = Hybrid()
    program = export(net, inputs)
    found = rewrite(program, expect_blocks=2 * 2 * 2).module()(*inputs)
    for mine, theirs in zip(found, net.ladder(*inputs), strict=True):
        assert_close(mine, theirs)
    standard = rewrite(program, staleness=0).module()(*inputs)  # cut sums are the same sums
    for mine, theirs in zip(standard, net(*inputs), strict=True):
        assert_close(mine, theirs, tolerance=0.0)


class Carried(nn.Module):
    """Text and image travel joined; each layer cuts them apart and adds to each."""

    def __init__(self, layers=2):
        super().__init__()
        self.both, self.image = (nn.ModuleList(Mlp() for _ in range(layers)) for _ in "ab")

    def forward(self, c, x):
        z = torch.cat([c, x], 1)
        for both, image in zip(self.both, self.image, strict=True):
            c, x = z.split([TEXT, IMAGE], 1)
            a, b = both(z).split([TEXT, IMAGE], 1)
            z = torch.cat([c + a, x + b], 1)
            c, x = z[:, :TEXT], z[:, TEXT:]
            z = torch.cat([c, x + image(x)], 1)
        return z

    def ladder(self, c, x):
        old_c, old_x = c, x
        for both, image in zip(self.both, self.image, strict=True):
            a, b = both(torch.cat([old_c, old_x], 1)).split([TEXT, IMAGE], 1)
            old_c, old_x, c, x = c, x, c + a, x + b
            old_x, x = x, x + image(old_x)
        return torch.cat([c, x], 1)


def test_parts_that_travel_joined_are_streams(inputs):
    net = Carried()
    assert_close(ladder_of(net, inputs, 2 + 2 * 2)(*inputs), net.ladder(*inputs))


class Entered(Carried):
    """The same, of what was joined outside: a graph input that is cut, and read whole."""

    def __init__(self, is_cut_late=False):
        super().__init__()
        self.is_cut_late = is_cut_late

    def forward(self, z):
        for both, image in zip(self.both, self.image, strict=True):
            if self.is_cut_late:
                h = both(z).split([TEXT, IMAGE], 1)
                c, x = z.split([TEXT, IMAGE], 1)
            else:
                c, x = z[:, :TEXT], z[:, TEXT:]
                h = both(z).split([TEXT, IMAGE], 1)
            c, x = c + h[0], x + h[1]
            z = torch.cat([c, x + image(x)], 1)
        return z


@pytest.mark.parametrize("is_cut_late", [False, True])
def test_parts_that_enter_joined_are_streams(is_cut_late, inputs):
    net, z = Entered(is_cut_late), torch.cat(inputs, 1)
    assert_close(ladder_of(net, (z,), 2 + 2 * 2)(z), net.ladder(*inputs))


class Kept(Hybrid):
    """Every sum of both is returned, and its parts too."""

    def forward(self, c, x):
        sums = []
        for both, beside, text, image in self.layers():
            z = torch.cat([c, x], 1)
            sums.append((z + both(z)) + beside(z))
            c, x = sums[-1].split([TEXT, IMAGE], 1)
            c, x = c + text(c), x + image(x)
        return c, x, *sums


def test_sums_that_are_returned_as_well(inputs):
    net = Kept()
    program = export(net, inputs)
    c, x, *sums = rewrite(program, expect_blocks=2 * 2 * 2).module()(*inputs)
    assert_close((c, x), net.ladder(*inputs))
    z = torch.cat(inputs, 1)
    assert_close(sums[0], z + net.both[0](z) + net.beside[0](z))
    standard = rewrite(program, staleness=0).module()(*inputs)
    assert_close(standard, net(*inputs), tolerance=0.0)


class Grouped(nn.Module):
    """Of three parts two are cut out as one, which has blocks of its own."""

    def __init__(self):
        super().__init__()
        self.all, self.two = (nn.ModuleList(Mlp() for _ in range(2)) for _ in "ab")

    def forward(self, a, b, c):
        for both, two in zip(self.all, self.two, strict=True):
            z = torch.cat([a, b, c], 1)
            z = z + both(z)
            pair, c = z[:, : 2 * TEXT], z[:, 2 * TEXT :]
            pair = pair + two(pair)
            a, b = pair.chunk(2, 1)
        return a, b, c

    def ladder(self, a, b, c):
        old_pair, old_c = pair, c = torch.cat([a, b], 1), c
        for both, two in zip(self.all, self.two, strict=True):
            h = both(torch.cat([old_pair, old_c], 1))
            old_pair, old_c, pair, c = pair, c, pair + h[:, : 2 * TEXT], c + h[:, 2 * TEXT :]
            old_pair, pair = pair, pair + two(old_pair)
        return *pair.chunk(2, 1), c


def test_parts_that_are_cut_out_as_one(inputs):
    net, parts = Grouped(), (inputs[0], inputs[0] + 1, inputs[1])
    assert_close(ladder_of(net, parts, 2 * 3)(*parts), net.ladder(*parts))


class Turned(nn.Module):
    """Text and image change places from block to block."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, *parts):
        for branch in self.branches:
            z = torch.cat(parts, 1)
            parts = (z + branch(z)).chunk(2, 1)[::-1]
        return parts

    def ladder(self, *parts):
        read = parts
        for branch in self.branches:
            h = branch(torch.cat(read, 1)).chunk(2, 1)
            read, parts = parts[::-1], [p + q for p, q in zip(parts, h, strict=True)][::-1]
        return parts


def test_parts_that_change_places_are_followed(inputs):
    net = Turned()
    found = ladder_of(net, inputs, 2 * 3)(*inputs)
    for mine, theirs in zip(found, net.ladder(*inputs), strict=True):
        assert_close(mine, theirs)


class Prompted(nn.Module):
    """Each layer has prompts of its own in place of the last one's (VPT-deep, arXiv 2203.12119)."""

    def __init__(self, layers=2):
        super().__init__()
        self.prompts = nn.ParameterList(torch.randn(2, TEXT, WIDTH) for _ in range(layers))
        self.first, self.second = (nn.ModuleList(Mlp() for _ in range(layers)) for _ in "ab")

    def forward(self, x):
        for prompt, first, second in zip(self.prompts, self.first, self.second, strict=True):
            z = torch.cat([prompt, x], 1)
            z = z + first(z)
            z = z + second(z)
            x = z[:, TEXT:]
        return x


def test_what_is_not_followed_is_said(inputs):
    program = export(Prompted(), inputs[1:])
    with pytest.warns(LadderWarning, match="These blocks stay standard") as caught:
        rewrite(program, expect_blocks=4)
    (said,) = (str(w.message) for w in caught if isinstance(w.message, LadderWarning))
    assert "block 2 of stream 0 reads the cat of what other blocks wrote" in said
    assert "test_joined_streams.py" in said
    assert "block 0" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("error", LadderWarning)
        rewrite(program, blocks=[1, 3])
