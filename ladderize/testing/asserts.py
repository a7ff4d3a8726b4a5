"""Compare compiled ladders with the reference: one assertion, and one ready check of a model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ladderize.testing.reference import ReferenceNet

# Largest difference, relative to the largest expected magnitude (at least 1): what sums taken in
# another order may cost over a dozen small blocks. A misplaced read costs 1e-2 and more.
TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}


def assert_ladder_equal(
    actual: Any, expected: Any, *, tolerance: float | None = None, what: str = "output"
) -> float:
    """Raise `AssertionError` unless two results (trees of tensors) agree; return the difference.

    Two floating tensors agree when shape and dtype are the same and every difference is at most
    `tolerance * max(1, largest expected magnitude)`. Other values must be equal.

    Args:
        actual, expected: tensors or trees of them with one structure.
        tolerance: None takes `TOLERANCE` of each tensor's dtype.
        what: the name of the result in the message.
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
    if not largest <= allowed:  # a NaN is not within the bound either
        worst = int(difference.nan_to_num(torch.inf).argmax())
        raise AssertionError(
            f"{what} is off by {largest:.3g} (allowed {allowed:.3g}): "
            f"{float(actual.flatten()[worst]):.6g} instead of {float(wanted.flatten()[worst]):.6g} "
            f"at flat index {worst} of {tuple(expected.shape)}"
        )
    return largest


@dataclass(frozen=True)
class Differences:
    """What `check_model` measured: largest absolute differences to the reference.

    Attributes:
        output: of the results of the model.
        gradients: of the gradients by parameter and input; 0.0 when none were asked for.
    """

    output: float
    gradients: float = 0.0


def check_model(
    model: nn.Module,
    reference: ReferenceNet,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    chosen: Collection[int] | None = None,
    staleness: int = 1,
    lowering: str = "eager",
    options: Mapping[str, Any] | None = None,
    dynamic: bool | None = None,
    gradients: bool = True,
    tolerance: float | None = None,
) -> Differences:
    """Compile `model` with the backend `ladderize` and compare it with an eager ladder.

        blocks = [ReferenceBlock(layer.mlp) for layer in model.layers]
        check_model(model, ReferenceNet(blocks, model.embed, model.lm_head), (tokens,))

    Args:
        model: with randomly initialized or trained weights; dropout must be off.
        reference: the same model as blocks. Exactly its blocks must be found in `model`.
        args, kwargs: what `model` and `reference.entry` are called with. Gradients are taken for
            the floating tensors among them, and for the parameters.
        chosen: indices of the blocks to convert, None for all. (`options={"blocks": ...}` asks
            for them in another spelling.)
        staleness: as in the options of the backend.
        lowering: `"eager"`, `"aot_eager"` or `"inductor"`.
        options: further options of the backend.
        dynamic: as in `torch.compile`.
        gradients: whether to compare the gradients of a random linear function of the results.
        tolerance: None takes `TOLERANCE` of each tensor's dtype.

    Raises:
        AssertionError: naming the result or gradient that is off.
        LadderError: (wrapped by Dynamo) when the model cannot be converted as asked.
    """
    kwargs = dict(kwargs or {})
    asked: dict[str, Any] = {
        "expect_blocks": len(reference.blocks),
        "staleness": staleness,
        "lowering": lowering,
    }
    if chosen is not None:
        asked["blocks"] = sorted(chosen)
    asked |= dict(options or {})
    compiled = torch.compile(
        model, backend="ladderize", fullgraph=True, dynamic=dynamic, options=asked
    )

    def eager(*args: Any, **kwargs: Any) -> Any:
        return reference.run(*args, chosen=chosen, staleness=staleness, **kwargs)

    actual = run_with_gradients(compiled, model, args, kwargs, gradients=gradients)
    expected = run_with_gradients(eager, model, args, kwargs, gradients=gradients)
    return Differences(
        assert_ladder_equal(actual[0], expected[0], tolerance=tolerance),
        assert_ladder_equal(actual[1], expected[1], tolerance=tolerance, what="gradient"),
    )


def run_with_gradients(
    function: Any,
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    gradients: bool = True,
) -> tuple[Any, dict[str, Tensor]]:
    """Call `function` on copies of the arguments; its result, and the gradients by name.

    The gradients are those of the sum of all floating results, each element weighted with a fixed
    random number; by parameter name, and `['args'][0]`, `['kwargs']['x']` for the inputs. No
    `.grad` is touched. Without `gradients` the function runs under `torch.no_grad`.
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
    """A scalar to which every element of every floating result contributes differently."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for value in pytree.tree_leaves(result):
        if isinstance(value, Tensor) and value.is_floating_point():
            weights = torch.randn(value.shape, generator=generator)
            total = total + (value * weights.to(value)).double().sum().cpu()
    return total
