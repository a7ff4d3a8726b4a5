"""Run plans: an engine on the device, and an island of engines and PyTorch parts.

In: a kind, and the weights of one of its islands. Out: a module to call with the island's other
inputs. `Engine` has not run yet, because deserializing a plan takes a GPU. Its calls are checked
against a stand-in (`test_engines.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from ladderize.backends.tensorrt.engines.build import BuiltKind
from ladderize.backends.tensorrt.engines.plan_cache import CachedPlan
from ladderize.compat import tensorrt as trt
from ladderize.errors import Blocker, LadderError

DEVICE = "cuda"


class Engine(nn.Module):
    """A plan on the current device. It runs on the current stream, one stream at a time."""

    def __init__(self, plan: CachedPlan) -> None:
        super().__init__()
        self._plan = plan
        self._engine = trt.deserialize(plan.engine)
        if self._engine is None:
            raise LadderError(
                "TensorRT cannot load a plan on this device:",
                [Blocker(f"{len(plan.engine)} bytes with outputs {', '.join(plan.outputs)}")],
                "see TensorRT's log; build for this device (target=None)",
            )
        self._context: Any = None
        self._shapes: list[tuple[int, ...] | None] = [None] * len(plan.inputs)
        self._on_host = [self._engine.is_shape_inference_io(name) for name in plan.inputs]
        self._dtypes = [trt.torch_dtype(self._engine.get_tensor_dtype(n)) for n in plan.outputs]

    def refit(self, weights: Sequence[torch.Tensor]) -> None:
        """Give the engine its weights, in the order of the plan.

        Raises:
            LadderError: TensorRT rejected weights; the message names them.
        """
        contiguous = [weight.detach().contiguous() for weight in weights]
        missing = trt.refit(self._engine, dict(zip(self._plan.weights, contiguous, strict=True)))
        if missing:
            raise LadderError(
                "TensorRT rejected the new weights (refit failed):",
                [Blocker(name) for name in missing],
            )

    def forward(self, *inputs: torch.Tensor | int) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the engine; return a tensor or a tuple, as the part of the graph does."""
        if self._context is None:  # after the weights are set: TensorRT-RTX compiles here
            self._context = self._engine.create_execution_context()
        given = self._set_inputs(inputs)
        outputs = tuple(map(self._new_output, self._plan.outputs, self._dtypes))
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not run an engine; see its log")
        del given  # kept until here: the memory of copies is freed in stream order
        return outputs if len(outputs) > 1 else outputs[0]

    def _set_inputs(self, inputs: Sequence[torch.Tensor | int]) -> list[torch.Tensor]:
        """Bind the inputs and return the bound tensors."""
        bound = []
        for index, (name, value) in enumerate(zip(self._plan.inputs, inputs, strict=True)):
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor([value])
            tensor = tensor.to("cpu" if self._on_host[index] else DEVICE).contiguous()
            shape = tuple(tensor.shape)
            # Sizes passed as values are read on the host, whatever their shape.
            if not self._on_host[index] and shape != self._shapes[index]:
                if not self._context.set_input_shape(name, shape):
                    self._refuse(name, shape)
                self._shapes[index] = shape
            self._context.set_tensor_address(name, tensor.data_ptr())
            bound.append(tensor)
        return bound

    def _new_output(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        output = torch.empty(
            tuple(self._context.get_tensor_shape(name)), dtype=dtype, device=DEVICE
        )
        self._context.set_tensor_address(name, output.data_ptr())
        return output

    def _refuse(self, name: str, shape: tuple[int, ...]) -> None:
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        raise LadderError(
            "An engine was called with a shape that it was not built for:",
            [Blocker(f"{shape} is not between {tuple(least)} and {tuple(most)}")],
            'build for more sizes: lowering_options={"sizes": …}',
        )


class EngineIsland(nn.Module):
    """A runnable island, called with its inputs except weights, in order."""

    def __init__(self, kind: BuiltKind, make_engine: Callable[[str], nn.Module]) -> None:
        super().__init__()
        self._kind = kind
        parts = {name: part for name, part in kind.graph.named_children() if name not in kind.plans}
        self._engines: dict[str, Any] = {name: make_engine(name) for name in kind.plans}
        self._graph = GraphModule({**parts, **self._engines}, kind.graph.graph)
        self._slots: list[torch.Tensor | None] = []

    def set_weights(self, slots: Sequence[torch.Tensor | None]) -> None:
        """Set the weights: a list over the island's inputs, with None for inputs that are not."""
        self._slots = list(slots)
        for name, engine in self._engines.items():
            held = [slots[index] for index in self._kind.weights[name]]
            if held:
                engine.refit(held)

    def forward(self, *inputs: torch.Tensor | int) -> tuple[Any, ...]:
        rest = iter(inputs)
        given = [next(rest) if slot is None else slot for slot in self._slots]
        layouts = self._kind.layouts
        return layouts.leave(self._graph(*layouts.enter(given)))
