"""Streams that are joined at their ends (Flux) or attended to there (SD3), and side values."""

import warnings
from functools import cache

import pytest
import torch
from helpers.graphs import Mlp
from helpers.lockstep import ShardedProgram
from torch import nn
from torch.export import export

from ladderize import LadderError, LadderWarning, last_report, rewrite, verify
from ladderize.config.options import LadderConfig
from ladderize.frontends.rewrite import explain_program
from ladderize.passes.rewriting_state import RankGroup
from ladderize.testing import assert_close

WIDTH, TEXT, IMAGE = 8, 4, 6


@pytest.fixture
def inputs():
    return torch.randn(2, TEXT, WIDTH), torch.randn(2, IMAGE, WIDTH)


def warned(program, **options):
    """The rewritten program and its report."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LadderWarning)
        ladder = rewrite(program, **options)
    return ladder, [str(w.message) for w in caught if w.category is LadderWarning]


class Joint(nn.Module):
    """Text and image attend to both, as one; then an MLP of its own for each."""

    def __init__(self, is_last=False):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in "cx")
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in "cx")
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in "cx")
        self.mlps = nn.ModuleList(Mlp() for _ in "cx")
        self.is_last = is_last  # of text: `context_pre_only`

    def attend(self, *parts):
        made = [
            qkv(norm(part)).chunk(3, -1)
            for qkv, norm, part in zip(self.qkv, self.norms, parts, strict=True)
        ]
        q, k, v = (torch.cat(pair, 1) for pair in zip(*made, strict=True))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        c, x = y.split([TEXT, IMAGE], 1)
        return self.out[0](c), self.out[1](x)

    def forward(self, c, x):
        a, b = self.attend(c, x)
        x = x + b
        x = x + self.mlps[1](x)
        if self.is_last:
            return c, x
        c = c + a
        return c + self.mlps[0](c), x


class Flux(nn.Module):
    """Joint blocks, then single blocks on both, joined for all of them or for each."""

    def __init__(self, is_cut=False, joint=1, single=3):
        super().__init__()
        self.joint = nn.ModuleList(Joint() for _ in range(joint))
        self.single = nn.ModuleList(Mlp() for _ in range(single))
        self.is_cut = is_cut

    def forward(self, c, x):
        for layer in self.joint:
            c, x = layer(c, x)
        z = torch.cat([c, x], 1)
        for layer in self.single:
            z = z + layer(z)
            if self.is_cut:
                z = torch.cat(z.split([TEXT, IMAGE], 1), 1)
        return z[:, TEXT:]

    def ladder(self, c, x, staleness=1, chosen=(0, 1, 2)):
        """`chosen` of the single blocks."""
        text, image = [c], [x]

        def old(states):
            return states[max(len(states) - 1 - staleness, 0)]

        for layer in self.joint:
            a, b = layer.attend(old(text), old(image))
            text.append(text[-1] + a)
            image.append(image[-1] + b)
            text.append(text[-1] + layer.mlps[0](old(text)))
            image.append(image[-1] + layer.mlps[1](old(image)))
        z = [torch.cat(pair, 1) for pair in zip(text, image, strict=True)]
        for index, layer in enumerate(self.single):
            z.append(z[-1] + layer(old(z) if index in chosen else z[-1]))
        return z[-1][:, TEXT:]


@cache
def flux():
    net = Flux()
    return net, export(net, (torch.randn(2, TEXT, WIDTH), torch.randn(2, IMAGE, WIDTH)))


def test_single_blocks_go_on_from_joint_blocks(inputs):
    net, program = flux()
    for staleness in (1, 2, 8):
        ladder, said = warned(program, staleness=staleness, expect_blocks=7)
        assert_close(ladder.module()(*inputs), net.ladder(*inputs, staleness=staleness))
        assert not said
    _, stream = last_report().graphs[0].streams
    assert [block.reads_after for block in stream.blocks[2:]] == 3 * [("x0", "x0_1")]
    assert verify(program, ladder, staleness=staleness, variants=1, dtypes=[torch.float32]).ok

    for chosen in ({0}, {1}, {0, 2}):
        blocks = [*range(4), *(4 + index for index in chosen)]
        found = rewrite(program, staleness=2, blocks=blocks).module()(*inputs)
        assert_close(found, net.ladder(*inputs, 2, chosen), what=str(chosen))


def test_over_two_ranks(inputs):
    net, program = flux()
    with pytest.warns(LadderWarning, match="Not everything is sharded"):
        sharded = ShardedProgram(program, 2)
    for (found,) in sharded(*inputs):
        assert_close(found, net.ladder(*inputs), tolerance=1e-5)
    report = explain_program(program, LadderConfig(), RankGroup(2, "group"))  # warned already
    _, stream = report.graphs[0].streams
    assert [len(block.hides) for block in stream.blocks[2:]] == [2, 1, 1]


def test_single_blocks_that_cut_and_join_go_on_too(inputs):
    net = Flux(is_cut=True)
    ladder, said = warned(export(net, inputs), expect_blocks=7)
    assert_close(ladder.module()(*inputs), net.ladder(*inputs))
    assert not said


def test_joined_blocks_of_checkpointed_layers(inputs):
    class Checkpointed(Flux):
        def forward(self, c, x):
            def run(layer, *args):
                return torch.utils.checkpoint.checkpoint(layer, *args, use_reentrant=False)

            for layer in self.joint:
                c, x = run(layer, c, x)
            z = torch.cat([c, x], 1)
            for layer in self.single:
                z = run(lambda z, layer=layer: z + layer(z), z)
            return z[:, TEXT:]

    net = Checkpointed()
    options = {"lowering": "eager", "expect_blocks": 7}
    compiled = torch.compile(net, backend="ladderize", fullgraph=True, options=options)
    assert_close(compiled(*inputs), net.ladder(*inputs))


class Ended(nn.Module):
    """Two blocks on the image, `then` what joins it to the text, and two blocks on both."""

    def __init__(self, then, after=lambda x: x):
        super().__init__()
        self.image, self.both = (nn.ModuleList(Mlp() for _ in range(2)) for _ in "ab")
        self.norm = nn.LayerNorm(WIDTH)
        self.then, self.after = then, after

    def forward(self, c, x):
        for layer in self.image:
            x = self.after(x + layer(x))
        z = self.then(self, c, x)
        for layer in self.both:
            z = z + layer(z)
        return z

    def ladder(self, c, x):
        states = [x]
        for layer in self.image:
            states.append(self.after(states[-1] + layer(states[max(len(states) - 2, 0)])))
        z = [torch.cat([c, x], 1) for x in states[1:]]
        for layer in self.both:
            z.append(z[-1] + layer(z[-2]))
        return z[-1]


def joined(_, c, x):
    return torch.cat([c, x], 1)


@pytest.mark.parametrize("after", [lambda x: x, torch.tanh], ids=["as it is", "behind its T"])
def test_what_no_block_wrote_is_joined_as_it_is(after, inputs):
    net = Ended(joined, after)
    ladder, said = warned(export(net, inputs))
    assert_close(ladder.module()(*inputs), net.ladder(*inputs))
    assert not said


NOT_FOLLOWED = {
    "normed once more": lambda net, c, x: torch.cat([c, net.norm(x)], 1),
    "a part of it": lambda _, c, x: torch.cat([c, x[:, 1:], x], 1),
    "normed when joined": lambda net, c, x: net.norm(torch.cat([c, x], 1)),
}


@pytest.mark.parametrize("then", NOT_FOLLOWED.values(), ids=NOT_FOLLOWED)
def test_what_is_joined_in_another_form_is_said(then, inputs):
    program = export(Ended(then), inputs)
    _, (said,) = warned(program)
    assert "block 2 of stream 0 reads the cat of what other blocks wrote" in said
    assert not warned(program, staleness=0)[1]
    assert not warned(program, blocks=[1, 3])[1]
    with pytest.raises(LadderError, match="cannot be converted") as caught:
        rewrite(program, blocks=[1, 2])
    assert [b.what for b in caught.value.blockers] == [said.partition("- ")[2].partition(" (")[0]]
    _, (said,) = warned(program, blocks=[1, 2], strict=False)
    assert said.startswith("These blocks stay standard")


def test_what_thins_a_stream_out_begins_a_segment(inputs):
    class Thinned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Mlp() for _ in range(4))

        def forward(self, _, x):
            for index, layer in enumerate(self.layers):
                x = x[:, ::2] if index == 2 else x
                x = x + layer(x)
            return x

    _, (said,) = warned(export(Thinned(), inputs), layers="2:4")
    assert said.startswith("These blocks stay standard")


class SD3(nn.Module):
    """In the last layer the text is read, and not written any more."""

    def __init__(self, layers=2):
        super().__init__()
        self.layers = nn.ModuleList(Joint(i == layers - 1) for i in range(layers))

    def forward(self, c, x):
        for layer in self.layers:
            c, x = layer(c, x)
        return x


def test_a_read_of_where_a_joint_stream_ends_is_said(inputs):
    program = export(SD3(), inputs)
    _, (said,) = warned(program)
    assert said.startswith("These reads stay standard")
    assert "block 2 of stream 0 also reads stream 1 where it ends" in said
    assert len(said.splitlines()) == 2
    assert not warned(program, blocks=[1, 3, 4])[1]


class OnTheSide(nn.Module):
    """Later blocks use a value that is made from the read of block 1, or from no block's read."""

    def __init__(self, at=1, is_used=False):
        super().__init__()
        self.layers = nn.ModuleList(Mlp() for _ in range(3))
        self.norm, self.gate = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.at, self.is_used = at, is_used

    def forward(self, _, x):
        for index, layer in enumerate(self.layers):
            if index == self.at:
                u = self.norm(x)
            is_gated = index > self.at or (index == self.at and self.is_used)
            h = layer(x)
            x = x + (h * torch.sigmoid(self.gate(u)) if is_gated else h)
        return x


def test_reads_on_the_side_are_said(inputs):
    _, (said,) = warned(export(OnTheSide(), inputs))
    assert "block 2 of stream 0 also reads the stream before block 1" in said
    assert len(said.splitlines()) == 2
    for net in (OnTheSide(at=0), OnTheSide(is_used=True)):  # x0 is never stale; block 1 reads u
        assert not warned(export(net, inputs))[1]


def test_what_blocks_use_of_an_earlier_branch_alone_is_as_stale_as_that(inputs):
    net = OnTheSide(is_used=True)
    _, x = inputs
    states = [x]
    for index, layer in enumerate(net.layers):
        read = states[max(index - 1, 0)]
        if index == 1:
            u = net.norm(read)
        h = layer(read)
        states.append(states[-1] + (h * torch.sigmoid(net.gate(u)) if index else h))
    assert_close(rewrite(export(net, inputs)).module()(*inputs), states[-1])


class Encoded(nn.Module):
    """An encoder, and a decoder that attends to where it ends."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = (nn.ModuleList(Mlp() for _ in range(2)) for _ in "ab")
        self.key = nn.Linear(WIDTH, WIDTH)

    def forward(self, c, x):
        for layer in self.encoder:
            c = c + layer(c)
        for layer in self.decoder:
            x = x + layer(x) + layer(x @ self.key(c).mT @ c)
        return x


def test_a_decoder_reads_where_its_encoder_ends(inputs):
    assert not warned(export(Encoded(), inputs))[1]
