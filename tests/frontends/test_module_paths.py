"""Reports and errors name modules by the user's paths, however Dynamo reached them."""

import functools

import pytest
import torch
from helpers.graphs import capture
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

import ladderize

X = torch.randn(2, 8)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(net):
        super().__init__()
        net.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(net, x):
        for layer in net.layers:
            x = layer(x)
        return x


class Around(nn.Module):
    """Its parts are in a plain list, in `__dict__`, in a ModuleDict and under odd names."""

    def __init__(self):
        super().__init__()
        self.plain = [Layer()]
        self.__dict__["hidden"] = Layer()
        self.parts = nn.ModuleDict({"encoder": Layer()})
        setattr(self, "b-1", Layer())

    def forward(self, x):
        x = self.parts["encoder"](self.hidden(self.plain[0](x)))
        return checkpoint(getattr(self, "b-1"), x, use_reentrant=False)


MODEL, MODELS = Net(), {"encoder": Net(), "decoders": [Net()]}


def patched():
    net = Net()
    forward = net.layers[0].forward
    net.layers[0].forward = lambda x: forward(x)
    return net


def closed_over():
    inner = Net()
    return lambda x: inner(x)


@pytest.mark.parametrize(
    ("call", "prefix"),
    [
        (MODEL, ""),
        (MODEL.forward, ""),
        (functools.partial(MODEL), ""),
        (torch.compile(MODEL), ""),
        (patched(), ""),
        (lambda x: MODEL(x), "MODEL."),
        (lambda x: MODELS["encoder"](x), "MODELS.encoder."),
        (closed_over(), "inner."),
    ],
    ids=["module", "method", "partial", "compiled", "patched", "global", "dict", "closure"],
)
def test_modules_are_named_as_the_user_does(call, prefix):
    report = ladderize.explain(call, X)
    assert [block.module for block in report.blocks] == [f"{prefix}layers.{i}" for i in range(3)]
    assert [block.layer for block in report.blocks] == [0, 1, 2]


def test_odd_places():
    report = ladderize.explain(Around(), X)
    found = [block.module for block in report.blocks]
    assert found == ["plain.0", "hidden", "parts.encoder", "b-1"]


def test_modules_behind_wrappers():
    """As torchtitan wraps them: a checkpointed layer, and a forward around the module's own."""
    net = patched()
    net.layers = nn.ModuleList(checkpoint_wrapper(layer) for layer in net.layers)
    report = ladderize.explain(net, X)
    assert [block.module for block in report.blocks] == [f"layers.{i}" for i in range(3)]


def test_errors_name_them_too():
    refusal = ladderize.explain(MODEL, X, options={"expect_blocks": 2}).refused[0]
    assert [blocker.where.partition(" at ")[0] for blocker in refusal.blockers] == [
        f"layers.{i}" for i in range(3)
    ]


class Scaled(nn.Module):
    """Multiplies by a parameter, a buffer and a tensor that is neither; counts its layers."""

    def __init__(self, num_layers=0):
        super().__init__()
        self.up = nn.Linear(8, 8, bias=False)
        self.register_buffer("codes", torch.ones(8, 8))
        self.scales = torch.ones(8)
        self.layers = nn.ModuleList(Scaled() for _ in range(num_layers))

    @property
    def num_layers(self):
        return len(self._modules["layers"])

    def forward(self, x):
        x = x + self.up(x) @ self.codes * self.scales
        for layer in self.layers[: self.num_layers]:
            x = layer(x)
        return x


@pytest.mark.parametrize(("module", "prefix"), [(True, ""), (False, "outer.")])
def test_parameters_are_named_as_the_user_does(module, prefix):
    outer = Scaled(2)
    _, names = capture(outer if module else lambda x: outer(x), X)
    owners = ("", "layers.0.", "layers.1.")
    assert sorted(names.values()) == sorted(
        f"{prefix}{owner}{name}" for owner in owners for name in ("up.weight", "codes", "scales")
    )
