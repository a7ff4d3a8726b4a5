"""Compute the results and gradients of a model, and compare them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
"""Largest difference, relative to the largest expected magnitude (at least 1), that summing in
another order may cause over a dozen small blocks. A wrong read causes 1e-2 or more."""


def assert_close(
    actual: Any, expected: Any, *, tolerance: float | None = None, what: str = "output"
) -> float:
    """Raise `AssertionError` unless two results (trees of tensors) agree; return the difference.

    Two floating tensors agree if shape and dtype are equal and every difference is at most
    `tolerance * max(1, largest expected magnitude)`. Other values must be equal.

    >>> import torch
    >>> expected = {"logits": torch.tensor([1.0, 200.0])}
    >>> assert_close({"logits": torch.tensor([1.0, 200.5])}, expected, tolerance=1e-2)
    0.5
    >>> assert_close({"logits": torch.tensor([1.0, 204.0])}, expected, tolerance=1e-2)
    Traceback (most recent call last):
    AssertionError: output['logits'] is off by 4 (allowed 2): 204 instead of 200 at flat index 1 ...

    Args:
        actual, expected: tensors, or trees of tensors with the same structure.
        tolerance: relative tolerance; None for the `TOLERANCE` of each tensor's dtype.
        what: name of the result in the message.

    Raises:
        AssertionError: they differ; the message says where and by how much.
    """
    found, structure = pytree.tree_flatten_with_path(actual)
    wanted, expected_structure = pytree.tree_flatten_with_path(expected)
    if structure != expected_structure:
        raise AssertionError(f"{what} has the structure {structure}, not {expected_structure}")
    return max(
        (
            _compare(value, want, tolerance, what + pytree.keystr(path))
            for (path, value), (_, want) in zip(found, wanted, strict=True)
        ),
        default=0.0,
    )


def _compare(actual: Any, expected: Any, tolerance: float | None, what: str) -> float:
    if not (isinstance(actual, Tensor) and isinstance(expected, Tensor)):
        if actual != expected:
            raise AssertionError(f"{what} is {actual!r}, not {expected!r}")
        return 0.0
    for name in ("shape", "dtype"):
        if getattr(actual, name) != getattr(expected, name):
            found, wanted = getattr(actual, name), getattr(expected, name)
            raise AssertionError(f"{what} has {name} {found}, not {wanted}")
    if not expected.is_floating_point():
        if not torch.equal(actual, expected):
            raise AssertionError(f"{what} differs")
        return 0.0
    return _compare_floats(actual.detach().double(), expected.detach(), tolerance, what)


def _compare_floats(actual: Tensor, expected: Tensor, tolerance: float | None, what: str) -> float:
    if tolerance is None:
        tolerance = TOLERANCE[expected.dtype]
    if expected.numel() == 0:
        return 0.0
    wanted = expected.double()
    allowed = tolerance * max(1.0, float(wanted.abs().max()))
    difference = (actual - wanted).abs()
    largest = float(difference.max())
    if not largest <= allowed:  # also if it is NaN
        worst = int(difference.nan_to_num(torch.inf).argmax())
        raise AssertionError(
            f"{what} is off by {largest:.3g} (allowed {allowed:.3g}): "
            f"{float(actual.flatten()[worst]):.6g} instead of {float(wanted.flatten()[worst]):.6g} "
            f"at flat index {worst} of {tuple(expected.shape)}"
        )
    return largest


def run_with_gradients(
    function: Any,
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    gradients: bool = True,
) -> tuple[Any, dict[str, Tensor]]:
    """Call `function` on copies of the arguments; return its result and the gradients by name.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> result, gradients = run_with_gradients(model, model, (torch.ones(3, 2),))
    >>> {name: tuple(gradient.shape) for name, gradient in gradients.items()}
    {'weight': (1, 2), 'bias': (1,), "['args'][0]": (3, 2)}

    The gradients are those of a fixed random weighted sum of all floating results. Their names are
    parameter names, and `['args'][0]`, `['kwargs']['x']` for inputs. `.grad` is not modified.
    Without `gradients`, the function runs under `torch.no_grad`.
    """
    args, kwargs = pytree.tree_map_only(Tensor, _copy, (tuple(args), dict(kwargs or {})))
    if not gradients:
        with torch.no_grad():
            return function(*args, **kwargs), {}
    leaves: dict[str, Tensor] = dict(model.named_parameters())
    for path, value in pytree.tree_flatten_with_path({"args": args, "kwargs": kwargs})[0]:
        if isinstance(value, Tensor) and value.is_floating_point():
            leaves[pytree.keystr(path)] = value.requires_grad_()
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    result = function(*args, **kwargs)
    values = torch.autograd.grad(
        _weigh(result), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return result, dict(zip(leaves, values, strict=True))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _weigh(result: Any) -> Tensor:
    """A random weighted sum of all elements of all floating results."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for value in pytree.tree_leaves(result):
        if isinstance(value, Tensor) and value.is_floating_point():
            weights = torch.randn(value.shape, generator=generator)
            total = total + (value * weights.to(value)).double().sum().cpu()
    return total
