"""Convert a part of a graph to a TensorRT network with Torch-TensorRT's interpreter.

In: a graph module, specifications of its inputs, values of its weights. Out: a `Network`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ladderize.compat.tensorrt.package import tensorrt
from ladderize.compat.tensorrt.recorder import new_recorder
from ladderize.compat.tensorrt.settings import BuildSettings, compilation_settings


@dataclass(frozen=True)
class InputSpec:
    """An input of an engine, with the minimum, usual and maximum size of each dim.

    For an integer input that sizes depend on (`is_size`), they bound its value instead.
    """

    name: str
    dtype: torch.dtype
    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]
    is_size: bool = False


@dataclass(frozen=True)
class Network:
    """A TensorRT network before it is built.

    Attributes:
        interpreter: Torch-TensorRT interpreter, which owns the network and its memory.
        recorder: recorder of TensorRT's error reports.
        inputs, outputs: names of the bindings, in the order of the part's inputs and outputs.
    """

    interpreter: Any
    recorder: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def definition(self) -> Any:
        """The `INetworkDefinition`."""
        return self.interpreter.ctx.net


class ConversionFailed(Exception):
    """A converter raised an error while converting `node`."""

    def __init__(self, node: Node | None, cause: BaseException, reported: Sequence[str]) -> None:
        said = str(cause).partition("\n")[0]  # fx appends its own trace
        super().__init__("; ".join([f"{type(cause).__name__}: {said}", *reported]))
        self.node = node


def convert(
    part: GraphModule,
    inputs: Sequence[InputSpec],
    weights: Mapping[str, torch.Tensor],
    settings: BuildSettings,
) -> Network:
    """Convert `part` to a network; `weights` holds the values of weights among its placeholders.

    Raises:
        ConversionFailed: a converter raised an error.
    """
    compilation = compilation_settings(settings)
    from torch_tensorrt import Input
    from torch_tensorrt.dynamo.conversion._conversion import infer_module_output_dtypes

    specs = [
        Input(shape=spec.usual, dtype=spec.dtype, name=spec.name)
        if spec.least == spec.most and not spec.is_size
        else Input(
            min_shape=spec.least,
            opt_shape=spec.usual,
            max_shape=spec.most,
            dtype=spec.dtype,
            name=spec.name,
            is_shape_tensor=spec.is_size,
        )
        for spec in inputs
    ]
    interpreter = _interpreter_class()(
        part,
        specs,
        output_dtypes=infer_module_output_dtypes(part),
        compilation_settings=compilation,
    )
    interpreter.weights = weights
    recorder = new_recorder()
    interpreter.builder.error_recorder = interpreter.ctx.net.error_recorder = recorder
    try:
        interpreter._construct_trt_network_def()
    except Exception as error:  # converters raise errors of any class
        raise ConversionFailed(interpreter._cur_node, error, recorder.errors) from error
    names = interpreter._input_names, interpreter._output_names
    return Network(interpreter, recorder, *map(tuple, names))


# Torch-TensorRT computes some int64 values in 32 bits; outputs have the dtype of the graph.
_WHOLE = (torch.int32, torch.int64)


@cache
def _interpreter_class() -> Any:
    trt: Any = tensorrt()
    from torch_tensorrt._enums import dtype
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    class Interpreter(TRTInterpreter):  # type: ignore[misc]  # no types
        """An interpreter that makes weights named constants, which converters cannot transform."""

        weights: Mapping[str, torch.Tensor]

        def placeholder(self, target: str, args: Any, kwargs: Any) -> Any:
            if target not in self.weights:
                return super().placeholder(target, args, kwargs)
            value = self.weights[target]
            kind = dtype._from(value.dtype).to(trt.DataType)
            data = trt.Weights(kind, value.data_ptr(), value.numel())
            layer = self.ctx.net.add_constant(tuple(value.shape), data)
            layer.name = target
            assert self.ctx.net.set_weights_name(data, target)
            return layer.get_output(0)

        def run_node(self, n: Node) -> Any:
            """Check the dtype: converters that ignore it, like `arange`'s, compute other values."""
            made, expected = super().run_node(n), n.meta.get("val")
            if isinstance(made, trt.ITensor) and isinstance(expected, torch.Tensor):
                given = dtype._from(made.dtype).to(torch.dtype)
                are_whole = given in _WHOLE and expected.dtype in _WHOLE
                if given != expected.dtype and not are_whole:
                    raise TypeError(f"its converter returns {given}, not {expected.dtype}")
            return made

        def output(self, target: str, args: Any, kwargs: Any) -> Any:
            """Copy repeated outputs. The base class drops them, which shifts later outputs."""
            given = args[0] if isinstance(args[0], (tuple, list)) else (args[0],)
            net = self.ctx.net
            met = [net.get_input(index) for index in range(net.num_inputs)]
            distinct = []
            for value in given:
                if any(value is other for other in met):
                    value = net.add_identity(value).get_output(0)
                met.append(value)
                distinct.append(value)
            return super().output(target, (tuple(distinct),), kwargs)

    return Interpreter


def layers(network: Network) -> list[tuple[str, str, tuple[str, ...]]]:
    """Type, name and dtypes of the outputs of each layer, in order."""
    net = network.definition
    found = [net.get_layer(index) for index in range(net.num_layers)]
    return [
        (
            str(layer.type).rpartition(".")[2],
            layer.name,
            tuple(
                str(layer.get_output(index).dtype).rpartition(".")[2]
                for index in range(layer.num_outputs)
            ),
        )
        for layer in found
    ]
