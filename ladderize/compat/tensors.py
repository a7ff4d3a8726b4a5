"""Fake tensors, symbolic sizes and wrapper subclasses."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves


def fake_mode_of(values: Sequence[Any]) -> Any:
    """The `FakeTensorMode` of the first fake tensor in `values`; None if there is none."""
    from torch._subclasses.fake_tensor import FakeTensor

    return next((v.fake_mode for v in values if isinstance(v, FakeTensor)), None)


def fake_of(alike: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    """A dense fake tensor like `alike`, but with `shape`. No op is dispatched."""
    from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

    assert isinstance(alike, FakeTensor)
    with unset_fake_temporarily():
        form = torch.empty(list(shape), dtype=alike.dtype, device="meta")
    made: torch.Tensor = FakeTensor(alike.fake_mode, form, alike.device)
    return made.requires_grad_(alike.requires_grad)


def is_wrapper_subclass(value: Any) -> bool:
    """Whether `value` is a wrapper subclass, such as a DTensor or a quantized weight."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return is_traceable_wrapper_subclass(value)


def inner_tensors(value: torch.Tensor) -> dict[str, torch.Tensor]:
    """The plain tensors inside a wrapper subclass, by name; a plain tensor itself has name ""."""
    if not is_wrapper_subclass(value):
        return {"": value}
    names, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
    return {
        f"{name}.{inner}".rstrip("."): tensor
        for name in names
        for inner, tensor in inner_tensors(getattr(value, name)).items()
    }


def plain_like(value: torch.Tensor) -> torch.Tensor:
    """A plain fake tensor with shape, dtype and device of the fake wrapper subclass `value`."""
    with fake_mode_of([*inner_tensors(value).values()]):
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)


def ops_reading(x: torch.Tensor, run: Callable[[], object]) -> list[Any]:
    """The packets of the ops in `run` that compute tensors from `x`, also indirectly, in order.

    For wrapper subclasses, these are the ops on their inner tensors.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    ops: list[Any] = []
    made = {id(x): x}

    class Readers(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            read = _tensors((args, kwargs))
            if any(map(is_wrapper_subclass, read)):
                return NotImplemented  # its own rule comes first, and calls ops on its tensors
            result = func(*args, **(kwargs or {}))
            found = _tensors(result)
            if found and any(id(value) in made for value in read):
                ops.append(func.overloadpacket)
                made.update((id(value), value) for value in found)
            return result

    with Readers():  # type: ignore[no-untyped-call]
        run()
    return ops


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def without_functorch(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` without the wrappers of `vmap` and `grad`, which have no storage."""
    from torch._C import _functorch

    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def hint(size: int | torch.SymInt) -> int:
    """The value of a size in the call being compiled, without adding a guard.

    1 for unbacked sizes, which have no value.
    """
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else 1


def has_hint(size: int | torch.SymInt) -> bool:
    """Whether `hint` knows the size; False for unbacked sizes."""
    return isinstance(size, int) or bool(size.node.has_hint())


@dataclass(frozen=True)
class SizeSymbol:
    """A symbol in a dynamic size.

    Attributes:
        name: name in the graph, `s77`.
        sources: Dynamo sources that it was read from: `L['input_ids'].size()[1]`.
        least, most: range of values it was traced for; `most` is None if unbounded.
        hint: value in the call being compiled; None if unbacked.
    """

    name: str
    sources: tuple[str, ...]
    least: int
    most: int | None
    hint: int | None


def symbols_of(size: torch.SymInt) -> Iterator[SizeSymbol]:
    """The symbols in the expression of a size, sorted by name."""
    env = size.node.shape_env
    for symbol in sorted(size.node.expr.free_symbols, key=str):
        found = env.var_to_range[symbol]
        hints = getattr(env, "backed_var_to_val", None) or env.var_to_val  # 2.11 has the latter
        sources = tuple(source.name for source in env.var_to_sources.get(symbol, ()))
        names = tuple(name if isinstance(name, str) else name() for name in sources)
        yield SizeSymbol(
            name=str(symbol),
            sources=names,
            least=max(int(found.lower), 0),
            most=int(found.upper) if found.upper.is_Integer else None,
            hint=int(hints[symbol]) if symbol in hints else None,
        )


def new_fake_mode() -> Any:
    """A `FakeTensorMode` with symbolic shapes that accepts real tensors (buffers)."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def propagate_fakes(gm: GraphModule, inputs: Sequence[Any]) -> None:
    """Run `gm` on fake copies of `inputs`, and store each node's value in `meta["val"]`."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    # The modules' own parameters are real tensors.
    FakeTensorProp(gm, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)


def python_dispatcher() -> AbstractContextManager[None]:
    """Enable the Python dispatcher, which aten.linear needs for symbolic sizes up to 2.11."""
    from torch._dispatch.python import enable_python_dispatcher

    manager: AbstractContextManager[None] = enable_python_dispatcher()
    return manager
