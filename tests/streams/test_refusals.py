"""Models that cannot become ladders: refused with the reason, or left unchanged and reported."""

import pytest
import torch
from helpers.graphs import Residual, Wrapped, highway, refuse, streams_of
from torch import nn

from ladderize import LadderError, LadderWarning, rewrite

WIDTH = 8


@pytest.fixture
def x():
    return torch.randn(2, 5, WIDTH)


def reversible(parts, x):
    a, b = torch.tanh(x), torch.sin(x)
    for f, g in zip(parts[::2], parts[1::2], strict=True):
        a = a + f(b)
        b = b + g(a)
    return a + b


def reversible_from_one_value(parts, x):
    a = b = torch.tanh(x)
    for f, g in zip(parts[::2], parts[1::2], strict=True):
        a = a + f(b)
        b = b + g(a)
    return torch.cat([a, b], -1)


def hyper_connections(parts, x):
    """Four streams in one tensor, mixed by a matrix a layer (arXiv 2409.19606, static form)."""
    mixing = torch.softmax(torch.arange(16.0).view(4, 4), -1)
    streams = torch.tanh(x).unsqueeze(2).expand(-1, -1, 4, -1)
    for part in parts:
        read = streams.mean(2)
        streams = torch.einsum("ij,bljd->blid", mixing, streams) + part(read).unsqueeze(2)
    return streams.sum(2)


def separate_hyper_connections(parts, x):
    """Two streams as two tensors, each the weighted sum of both and of the branch."""
    a, b = torch.tanh(x), torch.sin(x)
    for part in parts:
        h = torch.relu(part(a + 0.5 * b))
        a, b = 0.7 * a + 0.3 * b + h, 0.2 * a + 0.8 * b + 0.5 * h
    return a + b


def weighted_dense(parts, x):
    values = [torch.tanh(x)]
    for part in parts:
        values.append(values[-1] + part(sum(values)))
    return values[-1]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (reversible, "second residual stream, as in a reversible network"),
        (reversible_from_one_value, "second residual stream, as in a reversible network"),
        (highway, "as in a highway network"),
        (hyper_connections, "hyper-connections"),
        (separate_hyper_connections, "hyper-connections"),
        (weighted_dense, "dense connection"),
    ],
)
def test_refused_with_its_reason(body, reason, x):
    with pytest.raises(LadderError) as caught:
        refuse(Wrapped(body), x)
    assert reason in str(caught.value)
    named = ("test_refusals.py:", "graphs.py:")
    assert any(file in str(caught.value) for file in named), "the line is named"


def test_gated_recurrent_skips_are_refused(x):
    """The gate of GTrXL (arXiv 1910.06764): the skip path is `(1 - z) * x` with z made of x."""

    def body(parts, x):
        x = torch.tanh(x)
        for part in parts:
            h = torch.relu(part(x))
            z = torch.sigmoid(h @ torch.ones(WIDTH, WIDTH) + x @ torch.eye(WIDTH))
            x = (1 - z) * x + z * h
        return x

    with pytest.raises(LadderError, match="highway"):
        refuse(Wrapped(body), x)


def test_concatenating_nets_are_refused(x):
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(8 * (i + 1), 8) for i in range(3))

        def forward(self, x):
            for part in self.parts:
                x = torch.cat([x, torch.relu(part(x))], -1)
            return x

    with pytest.raises(LadderError, match="dense connections keep every value"):
        refuse(Dense(), x)


def test_a_net_without_residuals_is_refused(x):
    with pytest.raises(LadderError, match="No residual block was found"):
        refuse(nn.Sequential(*Wrapped(None).parts), x)


def test_a_fused_encoder_layer_is_refused():
    """In inference `nn.TransformerEncoder` is one op a layer, with both blocks inside."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 3, 8),), strict=True)
    with pytest.raises(LadderError, match="set_fastpath_enabled") as caught:
        rewrite(program)
    assert len(caught.value.blockers) == 2


# -- ladders


def compiled(model, **options):
    options = {"lowering": "eager", **options}
    return torch.compile(model, backend="ladderize", fullgraph=True, options=options)


@pytest.mark.parametrize("staleness", [1, 2, 3])
@pytest.mark.parametrize("chosen", [None, {3, 4, 5}], ids=["all", "hybrid"])
def test_a_ladder_is_left_alone_and_named(staleness, chosen):
    model, x = Residual(6), torch.randn(3, 8)

    class HandWritten(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net.ladder(x, chosen, staleness)

    with pytest.warns(LadderWarning, match="is already a ladder") as caught:
        out = compiled(HandWritten())(x)
    assert "graphs.py" in str(caught[0].message), "the stale blocks are named"
    torch.testing.assert_close(out, model.ladder(x, chosen, staleness), rtol=0, atol=0)


class Bottlenecks(nn.Module):
    """A skip around each layer; in it, behind a projection, a post-norm stream of two blocks."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)) for _ in range(2)
        )

    def forward(self, x, is_ladder=False):
        for enter, first, second, leave in self.layers:
            start = normed(enter(x))
            h = normed(start + first(start).tanh())
            h = normed(h + second(start if is_ladder else h).tanh())
            x = normed(x + leave(h))
        return x


def normed(x):
    return nn.functional.layer_norm(x, (WIDTH,))


def test_a_ladder_of_two_blocks_in_a_bottleneck_is_left_alone(x):
    model = Bottlenecks()
    ladder = rewrite(torch.export.export(model, (x,)))
    torch.testing.assert_close(ladder.module()(x), model(x, is_ladder=True))
    with pytest.warns(LadderWarning, match="is already a ladder, with 2 stale blocks"):
        again = rewrite(ladder)
    torch.testing.assert_close(again.module()(x), model(x, is_ladder=True))


@pytest.mark.parametrize("options", [{"blocks": [0, 1]}, {"layers": "last:1"}])
def test_a_choice_without_the_blocks_of_a_ladder_is_refused(options):
    with pytest.raises(LadderError, match="already read stale, but not as the options") as caught:
        compiled(Residual(4).ladder, **options)(torch.randn(3, 8))
    assert "block 2 already reads 1 block earlier and is not chosen (" in str(caught.value)
    assert "graphs.py:" in str(caught.value)


def test_the_stale_blocks_of_a_ladder_are_counted(x):
    (stream,) = streams_of(Residual(6).ladder, x)
    assert len(stream.blocks) == 1
    assert len(stream.stale_blocks) == 5


def test_stale_blocks_are_found_three_blocks_back(x):
    model = Residual(6)
    (stream,) = streams_of(lambda x: model.ladder(x, staleness=3), x)
    assert len(stream.stale_blocks) == 5


def test_a_standard_net_has_no_stale_blocks(x):
    (stream,) = streams_of(Residual(6), x)
    assert stream.stale_blocks == ()


def test_a_token_shift_is_no_stale_sum(x):
    """RWKV mixes each token with the one before: both summands come after the block before."""

    def body(parts, x):
        x = torch.tanh(x)
        for part in parts:
            h = torch.nn.functional.layer_norm(x, (WIDTH,))
            x = x + part(0.3 * h + 0.7 * torch.nn.functional.pad(h, (0, 0, 1, -1)))
        return x

    (stream,) = streams_of(Wrapped(body), x)
    assert len(stream.blocks) == 4
    assert stream.stale_blocks == ()


def test_expect_blocks_counts_those_of_a_ladder_too():
    model, x = Residual(4), torch.randn(3, 8)
    with pytest.warns(LadderWarning, match="is already a ladder"):
        compiled(model.ladder, expect_blocks=4)(x)
    torch._dynamo.reset()
    with pytest.raises(LadderError, match="5 blocks were expected, 4 were found"):
        compiled(model.ladder, expect_blocks=5)(x)
