"""Make calls that bypass a compiled module's `__call__` run the ladder too.

PeftModel ── LoraModel ── LlamaForCausalLM      peft.generate(ids) calls the innermost module
DistributedDataParallel ── model                ddp.module(x)
model.forward(x)                                calls model(x), which is compiled
torch.compile(step)(x)                          breaks the graph where step calls the model
"""

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ladderize import compat


def find_delegates(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that `model` wraps, outermost first: each is the only child of the one before.

    Linear in their number.
    """
    while True:
        children = dict(model.named_children())
        has_own_parameters = next(model.parameters(recurse=False), None) is not None
        if len(children) != 1 or has_own_parameters:
            return
        (model,) = children.values()
        if not can_be_called(model):
            return
        yield model


def can_be_called(module: nn.Module) -> bool:
    """Whether `module` has a forward, in contrast to a list or dict of modules."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def lead_forward_through_call(module: nn.Module) -> None:
    """Make `module.forward(x)` call `module(x)`, which is compiled. A copy calls itself.

    A `forward` set on the instance is kept.
    """
    if "forward" in vars(module):
        return
    standard = type(module).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        is_traced = torch.compiler.is_compiling()
        if is_traced and self._compiled_call_impl is not None and _is_traced_by_another():
            return _call(self, *args, **kwargs)
        if is_traced or compat.is_called_by_module():
            return standard(self, *args, **kwargs)
        return self(*args, **kwargs)

    # Dynamo raises at the ninth graph of one code object, so each module gets its own.
    forward.__code__ = forward.__code__.replace()
    forward = functools.wraps(standard)(forward)
    forward.leads_to_call = True  # type: ignore[attr-defined]
    module.forward = types.MethodType(forward, module)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_traced_by_another() -> bool:
    """Whether Dynamo is tracing for another backend, which would compile the standard model."""
    backend = compat.backend_under_way()
    return backend is not None and not str(backend.__module__).startswith("ladderize.")


@torch.compiler.disable(  # type: ignore[no-untyped-call,untyped-decorator]
    reason="ladderize: this model is a ladder and compiles separately: leave out fullgraph"
)
def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


def restore_forward(module: nn.Module) -> None:
    """Undo `lead_forward_through_call`."""
    if hasattr(vars(module).get("forward"), "leads_to_call"):
        del module.forward
