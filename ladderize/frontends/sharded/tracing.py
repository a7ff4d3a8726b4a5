"""Export a model that does not fit into memory: parameters are shapes, buffers are real.

factory() ── parameters on "meta", real buffers ── fake state ── torch.export ── ExportedProgram

Buffers have real values, because rotary tables and masks are computed when the model is built.
During tracing they are fake too, on the device of the inputs.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, export
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils import _pytree as pytree

from ladderize import compat
from ladderize.errors import Blocker, LadderError
from ladderize.streams.refusals import refuse_wrapped

META = torch.device("meta")


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules built inside this context have parameters on the meta device, and real buffers.

    A parameter only exists while its constructor runs, so at most one is in memory at a time.
    """
    thread = threading.get_ident()

    def as_shape(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.device == META or threading.get_ident() != thread:
            return None  # keep it
        shape = torch.empty_like(parameter, device=META)
        return nn.Parameter(shape, requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(as_shape)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def build(model_or_factory: nn.Module | Callable[[], nn.Module]) -> tuple[nn.Module, bool]:
    """Build the model; also returns whether its parameters have values."""
    if not isinstance(model_or_factory, nn.Module):
        with shapes_only():
            model = model_or_factory()
        if not isinstance(model, nn.Module):
            raise LadderError(
                f"The factory returned a {type(model).__name__}, not a module.",
                cure="pass a model, or a function without arguments that returns one",
            )
        return model, False
    parameters = list(model_or_factory.parameters())
    return model_or_factory, not any(parameter.device == META for parameter in parameters)


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Export `model` with a fake state. The model is not changed and nothing is computed.

    Args:
        model: model; its parameters may be on the meta device.
        args, kwargs: example inputs; only shapes, dtypes and devices matter.
        dynamic_shapes: as for `torch.export.export`.

    Returns:
        The program. Its `state_dict` is fake; constants found by tracing are real.

    Raises:
        LadderError: the model cannot be exported; torch's error is the cause.
    """
    refuse_wrapped(dict(model.named_parameters()))
    mode = compat.new_fake_mode()
    device = next(
        (leaf.device for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)),
        torch.device("cpu"),
    )
    with fake_state(model, mode, device), mode, torch.enable_grad(), _told():
        inputs = pytree.tree_map_only(Tensor, mode.from_tensor, (tuple(args), dict(kwargs)))
        return export(model, *inputs, dynamic_shapes=dynamic_shapes, strict=False)


def export_program(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Export `model` with its weights.

    Raises:
        LadderError: the model cannot be exported; torch's error is the cause.
    """
    refuse_wrapped(dict(model.named_parameters()))
    with _told():
        return export(model, tuple(args), dict(kwargs), dynamic_shapes=dynamic_shapes, strict=False)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Convert all errors of torch.export inside this context to `LadderError`."""
    try:
        yield
    except LadderError:
        raise
    except Exception as error:
        raise LadderError(
            "torch.export cannot trace this model:",
            [Blocker(f"{type(error).__name__}: {error}")],
            _cure_of(error),
        ) from error


def _cure_of(error: Exception) -> str:
    if "DynamicCache" in str(error):  # transformers models return it by default
        return "build it with use_cache=False, or with its own caches (examples/serve_llama.py)"
    return "export it with torch.export.export to see the full error"


@contextlib.contextmanager
def fake_state(model: nn.Module, mode: Any, device: torch.device) -> Iterator[None]:
    """Replace the tensors of `model` by fake ones of `mode` on `device`. Tied tensors stay tied."""
    kept = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    fakes: dict[Tensor | None, Any] = {None: None}
    try:
        for module, parameters, buffers in kept:
            for tensor in (*parameters.values(), *buffers.values()):
                if tensor is not None and tensor not in fakes:
                    fakes[tensor] = _fake(tensor, mode, device)
            module._parameters.update({name: fakes[p] for name, p in parameters.items()})
            module._buffers.update({name: fakes[b] for name, b in buffers.items()})
        yield
    finally:
        for module, parameters, buffers in kept:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _fake(tensor: Tensor, mode: Any, device: torch.device) -> Tensor:
    with mode:
        empty = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
        )
        if not isinstance(tensor, nn.Parameter):
            return empty
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
