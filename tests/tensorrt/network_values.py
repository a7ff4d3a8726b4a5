"""Compute what a TensorRT network means, layer by layer, in PyTorch on the CPU.

An independent reading of the network that TensorRT is given, by TensorRT's own description of its
layers: where its values are those of the graph, the conversion was right. It knows the layers that
the tests' models become, and raises on any other.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ladderize.compat import tensorrt as compat

trt: Any = compat.tensorrt()

_DTYPES = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.INT64: torch.int64,
    trt.DataType.INT32: torch.int32,
    trt.DataType.BOOL: torch.bool,
}


class Attentions:
    """The causal attention layers, which a network's description does not show."""

    def __init__(self) -> None:
        self.causal: list[bool] = []

    @contextmanager
    def watched(self) -> Iterator["Attentions"]:
        add = trt.INetworkDefinition.add_attention

        def watch(net: Any, query: Any, key: Any, value: Any, norm: Any, causal: bool) -> Any:
            assert norm == trt.AttentionNormalizationOp.SOFTMAX
            self.causal.append(causal)
            return add(net, query, key, value, norm, causal)

        trt.INetworkDefinition.add_attention = watch
        try:
            yield self
        finally:
            trt.INetworkDefinition.add_attention = add


def network_values(
    network: compat.Network,
    inputs: Mapping[str, Tensor],
    causal: Sequence[bool],
    weights: Mapping[str, Tensor],
) -> list[Tensor]:
    """The outputs of a network for these inputs, in order; `weights` are those it is refitted with.

    A weight is named after its layer, as `set_weights_name` was told.
    """
    net, values = network.definition, dict(inputs)
    constants = network.interpreter.ctx.weight_refit_map  # numpy has no bfloat16 to show them in
    layers = [net.get_layer(index) for index in range(net.num_layers)]
    held = [layer for layer in layers if layer.name in weights]
    assert len(held) == len(weights)
    for layer in layers:
        if layer.get_output(0).dtype == trt.DataType.BF16 and _type_of(layer) == "CONSTANT":
            values[layer.get_output(0).name] = constants.get(f"{layer.name} CONSTANT")
    for layer in held:
        assert net.are_weights_marked_refittable(layer.name)
        assert tuple(layer.get_output(0).shape) == tuple(weights[layer.name].shape)
        values[layer.get_output(0).name] = weights[layer.name]
    layers = [layer for layer in layers if layer.get_output(0).name not in values]
    attentions = [layer for layer in layers if _type_of(layer) == "ATTENTION_INPUT"]
    is_causal = dict(zip((layer.name for layer in attentions), causal, strict=True))
    while layers:  # they stand in the order in which they were added, not of their inputs
        ready = [layer for layer in layers if all(name in values for name in _inputs_of(layer))]
        assert ready
        for layer in ready:
            _compute(layer, values, is_causal)
        layers = [layer for layer in layers if layer.get_output(0).name not in values]
    return [values[net.get_output(i).name] for i in range(net.num_outputs)]


def _compute(layer: Any, values: dict[str, Tensor], is_causal: Mapping[str, bool]) -> None:
    given = [layer.get_input(i) for i in range(layer.num_inputs)]
    args = [None if tensor is None else values[tensor.name] for tensor in given]
    name = _type_of(layer)
    if name == "ATTENTION_INPUT":
        result = _attention(args, is_causal[layer.name])
    elif name == "ATTENTION_OUTPUT":
        result = values[layer.get_input(0).name]
    else:
        words = "".join(word.capitalize() for word in name.split("_"))
        words = (
            words.replace("Elementwise", "ElementWise")
            .replace("Softmax", "SoftMax")
            .replace("Topk", "TopK")
        )
        layer.__class__ = getattr(trt, f"I{words}Layer")  # it comes as an ILayer
        result = _LAYERS[name](layer, args)
    results = result if isinstance(result, tuple) else (result,)
    for index, value in enumerate(results):
        out = layer.get_output(index)
        assert value.dtype == _DTYPES[out.dtype], f"{name} {layer.name}: {value.dtype}"
        for size, told in zip(value.shape, out.shape, strict=True):
            assert told in (-1, size), f"{name} {layer.name}: {tuple(value.shape)}"
        values[out.name] = value


def _type_of(layer: Any) -> str:
    return str(trt.ILayer.type.fget(layer)).rpartition(".")[2]  # some have a `type` of their own


def _inputs_of(layer: Any) -> list[str]:
    given = [layer.get_input(index) for index in range(layer.num_inputs)]
    return [tensor.name for tensor in given if tensor is not None]


def _attention(args: Sequence[Any], is_causal: bool) -> Tensor:
    query, key, value, *mask = args
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    scores = query.float() @ key.float().transpose(-2, -1)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    if mask and mask[0] is not None:
        bias = mask[0]
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
    return (scores.softmax(-1) @ value.float()).to(query.dtype)


def _constant(layer: Any, _: Sequence[Any]) -> Tensor:
    return torch.from_numpy(layer.weights.copy()).view(tuple(layer.shape))


def _shuffle(layer: Any, args: Sequence[Any]) -> Tensor:
    value = args[0].permute(_order(layer.first_transpose, args[0].dim()))
    sizes = args[1].tolist() if len(args) > 1 else _dims(layer.reshape_dims)
    if sizes is not None:
        if layer.zero_is_placeholder:
            sizes = [value.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        value = value.reshape(sizes)
    return value.permute(_order(layer.second_transpose, value.dim()))


def _order(permutation: Any, rank: int) -> list[int]:
    return list(permutation)[:rank]


def _dims(dims: Any) -> list[int] | None:
    try:
        return list(dims)
    except ValueError:  # their way to say that none were set
        return None


def _slice(layer: Any, args: Sequence[Any]) -> Tensor:
    assert layer.mode == trt.SampleMode.STRICT_BOUNDS
    told = (layer.start, layer.shape, layer.stride)
    start, shape, stride = (
        args[i].tolist() if len(args) > i and args[i] is not None else list(told[i - 1])
        for i in (1, 2, 3)
    )
    value = args[0]
    for dim, (first, size, step) in enumerate(zip(start, shape, stride, strict=True)):
        value = value.index_select(dim, first + step * torch.arange(size))
    return value


def _elementwise(layer: Any, args: Sequence[Any]) -> Tensor:
    left, right = args
    assert left.dim() == right.dim()
    assert left.dtype == right.dtype
    operation = _ELEMENTWISE[str(layer.op).rpartition(".")[2]]
    result: Tensor = operation(left, right)
    return result


_ELEMENTWISE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add,
    "SUB": torch.sub,
    "PROD": torch.mul,
    "DIV": lambda a, b: a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc"),
    "FLOOR_DIV": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "POW": torch.pow,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
}
_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "SQRT": torch.sqrt,
    "NOT": torch.logical_not,
    "COS": torch.cos,
    "SIN": torch.sin,
    "EXP": torch.exp,
    "NEG": torch.neg,
    "RECIP": torch.reciprocal,
    "ERF": torch.erf,
    "SIGN": torch.sign,
    "ABS": torch.abs,
    "FLOOR": torch.floor,
}
_ACTIVATION: Mapping[str, Callable[[Tensor], Tensor]] = {
    "SIGMOID": torch.sigmoid,
    "TANH": torch.tanh,
    "RELU": torch.relu,
    "GELU_ERF": torch.nn.functional.gelu,
    "GELU_TANH": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}
_REDUCE: Mapping[str, Callable[..., Tensor]] = {
    "AVG": torch.mean,
    "SUM": torch.sum,
    "MAX": torch.amax,
    "MIN": torch.amin,
}


def _axes(mask: int) -> list[int]:
    return [axis for axis in range(8) if mask >> axis & 1]


def _reduce(layer: Any, args: Sequence[Any]) -> Tensor:
    reduction = _REDUCE[str(layer.op).rpartition(".")[2]]
    reduced = reduction(args[0], dim=_axes(layer.axes), keepdim=layer.keep_dims)
    return reduced.to(args[0].dtype)  # PyTorch sums up 32-bit integers in 64 bits


def _matrix_multiply(layer: Any, args: Sequence[Any]) -> Tensor:
    turned = [
        value.transpose(-2, -1) if operation == trt.MatrixOperation.TRANSPOSE else value
        for value, operation in zip(args, (layer.op0, layer.op1), strict=True)
    ]
    assert trt.MatrixOperation.VECTOR not in (layer.op0, layer.op1)
    assert turned[0].dim() == turned[1].dim()
    return turned[0] @ turned[1]


def _gather(layer: Any, args: Sequence[Any]) -> Tensor:
    data, index = args
    assert layer.num_elementwise_dims == 0
    if layer.mode == trt.GatherMode.ELEMENT:
        return data.gather(layer.axis, index.long())
    assert layer.mode == trt.GatherMode.DEFAULT
    index = torch.where(index < 0, index + data.shape[layer.axis], index)
    picked = data.index_select(layer.axis, index.reshape(-1))
    shape = [*data.shape[: layer.axis], *index.shape, *data.shape[layer.axis + 1 :]]
    return picked.reshape(shape)


def _normalization(layer: Any, args: Sequence[Any]) -> Tensor:
    value, scale, bias = args
    axes = _axes(layer.axes)
    variance, mean = torch.var_mean(value.float(), dim=axes, keepdim=True, correction=0)
    normal = (value.float() - mean) * torch.rsqrt(variance + layer.epsilon)
    return (normal * scale + bias).to(value.dtype)


def _unsqueeze(_: Any, args: Sequence[Any]) -> Tensor:
    value = args[0]
    for axis in sorted(args[1].reshape(-1).tolist()):
        value = value.unsqueeze(axis)
    return value


def _fill(layer: Any, args: Sequence[Any]) -> Tensor:
    assert layer.operation == trt.FillOperation.LINSPACE
    shape = args[0].tolist() if args and args[0] is not None else list(layer.shape)
    start = args[1] if len(args) > 1 and args[1] is not None else torch.tensor(layer.alpha)
    step = args[2] if len(args) > 2 and args[2] is not None else torch.tensor(layer.beta)
    (length,) = shape
    kind = _DTYPES[layer.get_output(0).dtype]
    return (start + step.reshape(-1)[0] * torch.arange(length)).to(kind)


def _scatter(layer: Any, args: Sequence[Any]) -> Tensor:
    data, index, values = args
    if layer.mode == trt.ScatterMode.ELEMENT:
        return data.scatter(layer.axis, index.long(), values)
    assert layer.mode == trt.ScatterMode.ND
    return data.index_put(tuple(index.long().unbind(-1)), values)


def _topk(layer: Any, args: Sequence[Any]) -> tuple[Tensor, Tensor]:
    (axis,) = _axes(layer.axes)
    num = int(args[1]) if len(args) > 1 else layer.k
    largest = layer.op == trt.TopKOperation.MAX
    values, indices = args[0].topk(num, axis, largest=largest)
    return values, indices.int()


_LAYERS: Mapping[str, Callable[[Any, Sequence[Any]], Any]] = {
    "ACTIVATION": lambda layer, args: _ACTIVATION[str(layer.type).rpartition(".")[2]](args[0]),
    "CAST": lambda layer, args: args[0].to(_DTYPES[layer.to_type]),
    "CONCATENATION": lambda layer, args: torch.cat(list(args), layer.axis),
    "CONSTANT": _constant,
    "ELEMENTWISE": _elementwise,
    "FILL": _fill,
    "GATHER": _gather,
    "IDENTITY": lambda layer, args: args[0].to(_DTYPES[layer.get_output(0).dtype]),
    "MATRIX_MULTIPLY": _matrix_multiply,
    "NORMALIZATION": _normalization,
    "REDUCE": _reduce,
    "SCATTER": _scatter,
    "SELECT": lambda _, args: torch.where(*args),
    "SHAPE": lambda _, args: torch.tensor(args[0].shape, dtype=torch.int64),
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SOFTMAX": lambda layer, args: args[0].softmax(*_axes(layer.axes)),
    "TOPK": _topk,
    "UNARY": lambda layer, args: _UNARY[str(layer.op).rpartition(".")[2]](args[0]),
    "UNSQUEEZE": _unsqueeze,
}
