"""Dynamo graphs for tests: captured, not compiled; and small nets to capture."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ladderize.compat.module_paths import parameter_names
from ladderize.passes.functionalize import Functionalize
from ladderize.streams.block import Stream
from ladderize.streams.context import AnalysisContext
from ladderize.streams.find import find_streams, streams_in
from ladderize.streams.refusals import refuse_unfit


def capture(
    model: Callable[..., Any], *args: Any, dynamic: bool | None = None, **kwargs: Any
) -> tuple[GraphModule, dict[Node, str]]:
    """The Dynamo graph of one call and the names of its parameters."""
    found = []

    def backend(gm: GraphModule, _: Sequence[Any]) -> GraphModule:
        found.append((gm, parameter_names(gm)))
        return gm

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)(*args, **kwargs)
    (result,) = found
    return result


def refuse(model: Callable[..., Any], *args: Any) -> None:
    """Raise what the pipeline has against the streams of `model`."""
    gm, names = capture(model, *args)
    Functionalize()(gm)
    context = AnalysisContext(gm, names)
    refuse_unfit(context, streams_in(context))


def streams_of(model: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Stream, ...]:
    gm, names = capture(model, *args, **kwargs)
    Functionalize()(gm)
    return find_streams(gm, names)


class Mlp(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.norm(x))))


class Residual(nn.Module):
    """`num_layers` pre-norm MLP blocks; `combine` spells the residual add."""

    def __init__(
        self,
        num_layers: int = 4,
        width: int = 8,
        combine: Callable[[Tensor, Tensor], Tensor] = torch.add,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.layers = nn.ModuleList(Mlp(width) for _ in range(num_layers))
        self.head = nn.Linear(width, width)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = self.combine(x, layer(x))
        return self.head(x)

    def ladder(self, x: Tensor, chosen: set[int] | None = None, staleness: int = 1) -> Tensor:
        """The eager ladder, written out."""
        stream = [self.embed(x)]
        for i, layer in enumerate(self.layers):
            is_chosen = chosen is None or i in chosen
            read = max(i - staleness, 0) if is_chosen else i
            stream.append(self.combine(stream[i].clone(), layer(stream[read])))
        return self.head(stream[-1])


class Wrapped(nn.Module):
    """`body` over a list of linear layers, for nets that are a few lines of forward."""

    def __init__(self, body, count=4, width=8):
        super().__init__()
        self.body = body
        self.parts = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x):
        return self.body(self.parts, x)


def highway(parts, x):
    x = torch.tanh(x)
    for h, t in zip(parts[::2], parts[1::2], strict=True):
        gate = torch.sigmoid(t(x))
        x = gate * torch.relu(h(x)) + (1 - gate) * x
    return x


class Broken(Residual):
    """A graph break between two runs of blocks."""

    def forward(self, x):
        x = super().forward(x)
        torch._dynamo.graph_break()
        for layer in self.layers:
            x = x + layer(x)
        return x
