"""`eager_ladder`: eager models made ladders by hooks, against independent references."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.eager_ladders import (
    bert_ladder,
    gpt2_ladder,
    llama_ladder,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tokens,
)
from helpers.few_examples import examples
from helpers.reads import HEAD
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from ladderize.testing import assert_close, eager_ladder, run_with_gradients
from ladderize.testing.blocks import OVERWRITES_X, ResidualBlock
from ladderize.testing.nets import NetSpec, ResidualNet
from ladderize.testing.strategies import conversions, nets

MODELS = {
    "llama": (tiny_llama, llama_ladder, HEAD["llama"]),
    "gpt2": (tiny_gpt2, gpt2_ladder, HEAD["gpt2"]),
    "bert": (tiny_bert, bert_ladder, HEAD["bert"]),
}

# -- against the recurrence written by hand


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("chosen", [None, {1, 2, 4}])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_as_written_by_hand(name: str, chosen: Any, staleness: int) -> None:
    make, by_hand, reads = MODELS[name]
    model = make(3)

    def hooked(ids: Tensor) -> Tensor:
        with eager_ladder(model, reads, chosen=chosen, staleness=staleness) as ladder:
            logits = model(input_ids=ids).logits
        assert len(ladder.blocks) == 6
        return logits

    def expected(ids: Tensor) -> Tensor:
        return by_hand(model, ids, range(6) if chosen is None else chosen, staleness)

    found = run_with_gradients(hooked, model, (tokens(),))
    wanted = run_with_gradients(expected, model, (tokens(),))
    assert torch.equal(found[0], wanted[0])
    assert_close(found[1], wanted[1])


def readers(net: ResidualNet) -> Iterator[list[str]]:
    """The names of what reads the stream, a list a stage: stages may keep the shape of it."""
    for stage in range(net.num_stages):
        yield [
            f"{name}.{'norms' if block.spec.placement == 'pre' else 'branches'}.*"
            for name, block in net.named_modules()
            if isinstance(block, ResidualBlock) and name.startswith(f"stage{stage}.")
        ]


@examples(10)
@given(nets(), st.data())
def test_the_same_as_the_reference_of_any_net(spec: NetSpec, data: st.DataObject) -> None:
    """In-place and parallel spellings, stages of one shape, norms before and after the sum."""
    blocks = [block for stage in spec.stages for block in stage.blocks]
    assume(
        all(b.placement == "pre" or not b.conditioned for b in blocks)
    )  # a module reads x itself
    conversion = data.draw(conversions(spec.num_blocks))
    how = {"chosen": conversion.chosen, "staleness": conversion.staleness}
    net = ResidualNet(spec)

    def hooked(*args: Any) -> Any:
        with eager_ladder(net, list(readers(net)), **how) as ladder:
            result = net(*args)
        assert len(ladder.blocks) == spec.num_blocks
        return result

    def expected(*args: Any) -> Any:
        return net.reference().run(*args, **how)

    # Eager autograd refuses `x += h(x)`: the branch keeps x for its backward.
    trains = all(block.spelling not in OVERWRITES_X for block in blocks)
    found = run_with_gradients(hooked, net, spec.make_args(), gradients=trains)
    assert_close(found, run_with_gradients(expected, net, spec.make_args(), gradients=trains))


# -- what is a block: h_i(x) = 10^(i+1) x


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Chain(nn.Module):
    """x += h(x), with a module per branch."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Times, factors))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        for layer in self.layers:
            x += layer(x)
        return x


class Residual(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.h = Times(factor)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.h(x)


class Parallel(nn.Module):
    """Two parallel blocks of the same two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Times(10), Times(100)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.attention(x) + self.mlp(x)
        return x


class Sum(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, context: Tensor) -> Tensor:
        return query + key + value + context


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = Sum()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.h(x, x, value=x, context=context)
        return x


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, x), -1)


class Turns(nn.Module):
    """Two streams from one value, with blocks of both in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Times(10), Times(100)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.clone(), x.clone()
        for _ in range(2):
            left = left + self.left(left)
            right = right + self.right(right)
        return left + right


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError(x)


ONE = torch.ones((), dtype=torch.float64)
LADDER = 11 + 100 + 1000 * 11  # x1 = 11, x2 = 11 + h_1(1), x3 = x2 + h_2(x1)


def run(model: nn.Module, *args: Any, reads: Any = ("layers.*",), **how: Any) -> float:
    with eager_ladder(model, reads, **how):
        return float(model(*(args or (ONE,))))


def test_writing_the_stream_in_place() -> None:
    assert run(Chain(10, 100, 1000)) == LADDER
    assert run(Chain(10, 100, 1000), staleness=2) == 11 + 100 + 1000
    assert run(Chain(10, 100, 1000), chosen=[2]) == 11 * 101 + 1000 * 11


def test_writing_nothing_in_place_is_a_block() -> None:
    """`x += 0` leaves the same tensor with the same values: still another block."""
    assert run(Chain(0, 0, 10, 100)) == 11 + 100


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any) -> None:
    with mode():
        assert run(nn.Sequential(Residual(10), Residual(100)), ONE.clone(), reads=["*.h"]) == 111
    with torch.no_grad():
        assert run(Chain(10, 100, 1000)) == LADDER


def test_two_readers_of_one_value_are_one_block() -> None:
    net = Parallel()
    with eager_ladder(net, ["attention", "mlp"]) as ladder:
        assert net(ONE).item() == 111 + 110
    assert ladder.blocks == [("attention", "mlp")] * 2  # shared modules: blocks are calls


def test_arguments_that_are_the_read() -> None:
    """q, k and v are one tensor; the context is another."""
    net, x, context = Attending(), ONE, 7 * ONE
    assert run(net, x, context, reads=["h"]) == 11 + 3 * 1 + 7
    assert run(net, x, context, reads=["h:query"]) == 11 + (1 + 11 + 11) + 7
    assert run(net, x, context, reads=["h:value"]) == 11 + (11 + 11 + 1) + 7
    with pytest.raises(ValueError, match="h:mask was called without a floating tensor"):
        run(net, x, context, reads=["h:mask"])


def test_a_segment_begins_where_the_shape_changes() -> None:
    net = nn.Sequential(Residual(10), Residual(100), Doubled(), Residual(1000), Residual(10000))
    with eager_ladder(net, ["*.h"]) as ladder:
        assert net(ONE.reshape(1, 1)).tolist() == [[111 * 1001 + 10000 * 111] * 2]
    assert ladder.blocks == [("0.h",), ("1.h",), ("3.h",), ("4.h",)]


def test_merged_dims_begin_no_segment() -> None:
    """As OPT's MLPs read `[batch * length, width]`."""
    net = nn.Sequential(Residual(10), nn.Flatten(0, 1), Residual(100), nn.Unflatten(0, (2, 3)))
    with eager_ladder(net, ["*.h"]):
        assert torch.equal(net(ONE.repeat(2, 3, 4)), 111 * ONE.repeat(2, 3, 4))


def test_each_forward_counts_anew() -> None:
    """Also after one that failed."""
    net = Chain(10, 100, 1000)
    with eager_ladder(net, ["layers.*"]) as ladder:
        with pytest.raises(TypeError):
            net(torch.ones(()), None)
        for _ in range(2):
            assert net(ONE).item() == LADDER
            assert len(ladder.blocks) == 3
        last, net.layers[2] = net.layers[2], Failing()
        with pytest.raises(ZeroDivisionError):
            net(ONE)
        net.layers[2] = last
        assert net(ONE).item() == LADDER
    assert net(ONE).item() == 11 * 101 * 1001


# -- several streams


TWO = {"up": ["0.*.h"], "down": ["1.*.h"]}


@pytest.mark.parametrize("reads", [TWO, list(TWO.values())])
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [(None, 111 + 10 * 111 + 100 * 111), ([1], 111 * 11 * 101), ([3], 11 * 101 * 111)],
)
def test_streams_count_for_themselves(reads: Any, chosen: Any, expected: float) -> None:
    net = nn.Sequential(*(nn.Sequential(Residual(10), Residual(100)) for _ in range(2)))
    with eager_ladder(net, reads, chosen=chosen) as ladder:
        assert net(ONE).item() == expected
    assert ladder.blocks == [("0.0.h",), ("0.1.h",), ("1.0.h",), ("1.1.h",)]


def test_streams_that_take_turns() -> None:
    net = Turns()
    reads = [["left"], ["right"]]
    assert run(net, reads=reads) == 21 + 201  # x + 10 x, then + 10 * 1 again
    with pytest.raises(ValueError, match="left starts a block of an earlier stream"):
        run(net, reads=reads, chosen=[1])


# -- what is refused


def test_names_of_nothing() -> None:
    net = Chain(10, 100)
    with (
        pytest.raises(ValueError, match=r"no module of Chain is named layer\.\*, layers\.9$"),
        eager_ladder(net, ["layer.*", "layers.[01]", "layers.9", "layers.*"]),
    ):
        pass
    with pytest.raises(ValueError, match=r"is named lay$"):  # a component is matched as a whole
        run(net, reads=["lay"])
    with pytest.raises(ValueError, match=r"is named \*\.\*$"):  # no `*` matches a dot
        run(nn.Sequential(Times(1)), reads=["*", "*.*"])


def test_a_reader_of_two_streams() -> None:
    with pytest.raises(ValueError, match=r"layers\.1 is listed as a reader of two streams"):
        run(Chain(10, 100), reads=[["layers.*"], ["layers.1"]])


def test_checkpointing_is_refused() -> None:
    """Its second forward happens where no block can be counted."""
    model = tiny_llama(2).train()
    model.gradient_checkpointing_enable()
    with (
        eager_ladder(model, HEAD["llama"]),
        pytest.raises(RuntimeError, match="activation checkpointing off"),
    ):
        model(input_ids=tokens()).logits.sum().backward()


# -- generation


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generation_with_a_cache(name: str) -> None:
    """Each token's logits are those of the ladder over the whole sequence."""
    make, by_hand, reads = MODELS[name]
    model = make(3)
    how = {"max_new_tokens": 4, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    with eager_ladder(model, reads, chosen=[1, 3, 4]):
        found = model.generate(
            tokens(), output_logits=True, return_dict_in_generate=True, eos_token_id=-1, **how
        )
    assert found.sequences.shape == (2, 7 + 4)
    with torch.no_grad():
        wanted = by_hand(model, found.sequences[:, :-1], [1, 3, 4])[:, 6:]
    assert_close(torch.stack(found.logits, 1), wanted)
