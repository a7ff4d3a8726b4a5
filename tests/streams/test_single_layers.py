"""Layers compiled one by one are refused with a cure, unless the options allow it."""

import pytest
import torch
from helpers.eager_ladders import llama_ladder, tiny_llama, tokens
from helpers.graphs import Mlp, Residual
from torch import nn

from ladderize import LadderError

OPTIONS = {"backend": "ladderize", "fullgraph": True}
CURE = r"compile the whole model, torch.compile\(model, backend='ladderize'\)"


class Layer(nn.Module):
    def __init__(self, num_blocks=2):
        super().__init__()
        self.branches = nn.ModuleList(Mlp() for _ in range(num_blocks))

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(x)
        return x


class Stack(nn.Module):
    def __init__(self, num_layers=3, num_blocks=2):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Layer(num_blocks) for _ in range(num_layers))

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def x():
    return torch.randn(3, 8)


def eager(**options):
    return {**OPTIONS, "options": {"lowering": "eager", **options}}


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_layers_that_compile_themselves(num_blocks, x):
    model = Stack(num_blocks=num_blocks)
    for layer in model.layers:
        layer.compile(**eager())
    with pytest.raises(LadderError, match=CURE) as caught:
        model(x)
    assert "it is one of 3 Layer in 'layers' of Stack" in str(caught.value)
    assert f"leaves as an output after {num_blocks} blocks" in str(caught.value)


def test_layers_replaced_by_compiled_ones(x):
    model = Stack(num_blocks=3)
    for i, layer in enumerate(model.layers):
        model.layers[i] = torch.compile(layer, **eager())
    with pytest.raises(LadderError, match="it is one of 3 Layer in 'layers' of Stack"):
        model(x)


def test_a_layer_of_two_blocks_called_by_a_function(x):
    layer = torch.compile(Layer(), **eager())
    with pytest.raises(LadderError, match=CURE):
        layer(x)


def test_llama_layers_that_compile_themselves():
    model = tiny_llama(2)
    for layer in model.model.layers:
        layer.compile(**eager())
    with torch.no_grad(), pytest.raises(LadderError, match=r"one of 2 LlamaDecoderLayer in"):
        model(tokens())


@pytest.mark.parametrize("meant", [{"expect_blocks": 2}, {"blocks": "all", "expect_blocks": 2}])
def test_a_layer_that_is_meant_is_a_ladder_by_itself(meant, x):
    model = Stack()
    for layer in model.layers:
        layer.compile(**eager(**meant))
    expected = model.embed(x)
    for layer in model.layers:
        a, b = layer.branches
        expected = expected + a(expected) + b(expected)
    torch.testing.assert_close(model(x), expected)


# -- what is not a layer by itself


def test_a_whole_stack_inside_of_an_eager_model(x):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Stack(num_blocks=1)

        def forward(self, x):
            return self.body(x)

    model = Model()
    model.body.compile(**eager())
    reference = Residual(3)
    reference.embed = model.body.embed
    reference.layers = nn.ModuleList(layer.branches[0] for layer in model.body.layers)
    reference.head = nn.Identity()
    torch.testing.assert_close(model(x), reference.ladder(x))


def test_a_headless_encoder_of_an_eager_model(x):
    """The stream enters and leaves, but the module is the only one of its kind."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Layer(1) for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = Encoder(), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.encoder(x))

    model = Model()
    model.encoder.compile(**eager())
    reference = Residual(4)
    reference.embed, reference.head = nn.Identity(), model.head
    reference.layers = nn.ModuleList(layer.branches[0] for layer in model.encoder.layers)
    torch.testing.assert_close(model(x), reference.ladder(x))


def test_a_whole_llama_with_layers_and_wrapper():
    """The model itself may be held in a list of an eager wrapper."""

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList([tiny_llama(2), tiny_llama(2)])

        def forward(self, ids):
            return sum(member(ids).logits for member in self.members)

    model = Ensemble()
    for member in model.members:
        member.compile(**eager())
    with torch.no_grad():
        wanted = sum(llama_ladder(member, tokens(), range(4)) for member in model.members)
        torch.testing.assert_close(model(tokens()), wanted, atol=1e-5, rtol=0)
