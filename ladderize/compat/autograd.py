"""`torch.compile` and AOTAutograd: compiled modules, and graphs before and after autograd."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node


def drop_compiled(module: nn.Module) -> None:
    """Undo `module.compile(...)`."""
    module._compiled_call_impl = None


def wrap_compiled(
    module: nn.Module, around: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace the callable that `module.compile(...)` made by `around` of it."""
    compiled = module._compiled_call_impl
    assert compiled is not None
    module._compiled_call_impl = around(compiled)


def drop_graphs() -> None:
    """Make Dynamo retrace every function of this process at its next call."""
    import torch._dynamo

    torch._dynamo.reset_code_caches()


def is_called_by_module() -> bool:
    """Whether the caller of this function's caller is `nn.Module.__call__`."""
    return sys._getframe(2).f_code is nn.Module._call_impl.__code__


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile(...)` was called."""
    return module._compiled_call_impl is not None


def is_compiled_wrapper(module: nn.Module) -> bool:
    """Whether `module` was returned by `torch.compile(model)`."""
    from torch._dynamo import OptimizedModule

    return isinstance(module, OptimizedModule)


def without_wrapper(module: nn.Module) -> nn.Module:
    """The model inside the wrapper that `torch.compile(model)` returns; else `module` itself."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


Compiler = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]


def aot_compile(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    compiler: Compiler,
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
) -> Callable[..., Any]:
    """Trace `gm` to ATen, forward and backward, and pass each graph to `compiler`."""
    from torch._dynamo.backends.common import aot_autograd

    trace = aot_autograd(fw_compiler=compiler, decompositions=decompositions)
    compiled: Callable[..., Any] = trace(gm, example_inputs)
    return compiled


def input_position(placeholder: Node) -> int | None:
    """The index of a placeholder among the inputs of AOTAutograd; None if AOTAutograd added it."""
    from torch._functorch._aot_autograd.descriptors import PlainAOTInput

    described = placeholder.meta.get("desc")
    return described.idx if isinstance(described, PlainAOTInput) else None


def boxed(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` in the calling convention of AOTAutograd's compilers."""
    from functorch.compile import make_boxed_func  # type: ignore[import-untyped]  # no stubs

    made: Callable[..., Any] = make_boxed_func(fn)
    return made


def saves_random_states_behind_meshes() -> bool:
    """Whether AOTAutograd saves CPU generator states that it does not expect. Only in 2.13."""
    return str(torch.__version__).startswith("2.13")
