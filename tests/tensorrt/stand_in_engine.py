"""Stands in for an engine on a GPU: the network that its plan was built from, computed on the CPU.

`Converted` keeps each network as it is built, by its plan, so that a bound island can run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from network_values import Attentions, network_values
from torch import nn

from ladderize.backends.tensorrt.engines import build
from ladderize.backends.tensorrt.engines.plan_cache import CachedPlan
from ladderize.compat import tensorrt as compat


class Converted:
    """Networks that were built, by the bytes of their plans."""

    def __init__(self) -> None:
        self._built: dict[bytes, tuple[Any, list[bool]]] = {}
        self.num_engines = 0

    @contextmanager
    def watched(self, monkeypatch: Any) -> Iterator[None]:
        """Keep what is built inside."""
        convert, build_plan = compat.convert, compat.build_plan
        causal: dict[int, list[bool]] = {}

        def watch_convert(*args: Any) -> Any:
            with Attentions().watched() as seen:
                network = convert(*args)
            causal[id(network)] = seen.causal
            return network

        def watch_build(network: Any, settings: Any, weights: Any) -> bytes:
            if weights:  # building these takes a GPU; that they can be marked does not
                assert all(map(network.definition.mark_weights_refittable, weights))
                plan = f"refittable {len(self._built)}".encode()
            else:
                plan = build_plan(network, settings, weights)
            self._built[plan] = (network, causal[id(network)])
            return plan

        with monkeypatch.context() as patch:
            patch.setattr(build.trt, "convert", watch_convert)
            patch.setattr(build.trt, "build_plan", watch_build)
            yield

    def make_engine(self, plan: CachedPlan) -> nn.Module:
        """A replacement for `Built.make_engine`."""
        self.num_engines += 1
        return _Network(plan, *self._built[plan.engine])


class _Network(nn.Module):
    def __init__(self, plan: CachedPlan, network: Any, causal: Sequence[bool]) -> None:
        super().__init__()
        self._plan, self._network, self._causal = plan, network, causal
        self._held: dict[str, torch.Tensor] = {}

    def refit(self, weights: Sequence[torch.Tensor]) -> None:
        self._held = dict(zip(self._plan.weights, weights, strict=True))

    def forward(self, *inputs: Any) -> Any:
        given = {
            name: value if isinstance(value, torch.Tensor) else torch.tensor([value])
            for name, value in zip(self._plan.inputs, inputs, strict=True)
        }
        given = {name: value.contiguous() for name, value in given.items()}
        values = network_values(self._network, given, self._causal, self._held)
        outputs = [value.contiguous() for value in values]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
