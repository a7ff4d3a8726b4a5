"""Check that a model compiled with the backend `ladderize` equals its eager ladder."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ladderize.testing.reference import ReferenceNet
from ladderize.testing.results import assert_close, run_with_gradients
from ladderize.testing.stale_reads import Reads, eager_ladder


@dataclass(frozen=True)
class Differences:
    """Largest absolute differences measured by `assert_ladder_equal`.

    >>> found = Differences(output=2e-7, gradients=1e-6, standard=0.3)
    >>> found.standard > 1000 * found.output  # a wrong read would have shown
    True

    Attributes:
        output: difference between the results of the compiled model and the eager ladder.
        gradients: difference between their gradients, by parameter and input; 0.0 without
            gradients.
        standard: difference between the results of the standard model and the eager ladder. If it
            is not far above `output`, the comparison cannot tell the two models apart.
    """

    output: float
    gradients: float = 0.0
    standard: float = 0.0


def assert_ladder_equal(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    reads: Reads | None = None,
    reference: ReferenceNet | None = None,
    chosen: Collection[int] | None = None,
    staleness: int = 1,
    connectivity: str = "ladder",
    lowering: str = "eager",
    options: Mapping[str, Any] | None = None,
    dynamic: bool | None = None,
    gradients: bool = True,
    tolerance: float | None = None,
) -> Differences:
    """Compile `model` with the backend `ladderize` and compare it with an eager ladder of it.

    >>> import torch
    >>> from torch import nn
    >>> class Layer(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)
    ...     def forward(self, x):
    ...         return x + self.mlp(self.norm(x))
    >>> model = nn.Sequential(Layer(), Layer(), Layer())
    >>> found = assert_ladder_equal(model, (torch.randn(2, 8),), reads=["*.norm"])
    >>> found.output < 1e-5 and found.gradients < 1e-5 and found.standard > 1e-2
    True

    or with the reference written out:

    >>> from ladderize.testing import ReferenceBlock, ReferenceNet
    >>> net = ReferenceNet([ReferenceBlock(lambda x, l=l: l.mlp(l.norm(x))) for l in model])
    >>> _ = assert_ladder_equal(model, (torch.randn(2, 8),), reference=net, staleness=2)

    Args:
        model: model with random or trained weights and without dropout. Initial weights of
            transformers models are so small that a wrong read may stay within the tolerance; see
            `Differences.standard`.
        args, kwargs: arguments of the call. Gradients are taken for their floating tensors and
            for the parameters.
        reads: modules whose inputs the blocks read, as in `eager_ladder`; alternative to
            `reference`.
        reference: the same model as blocks. The number of blocks found in `model` must be its
            number, or the number that `eager_ladder` counts, unless `options` has `expect_blocks`.
        chosen: indices of the blocks to convert, None for all. Use `options={"blocks": ...}` to
            test other forms of the option.
        staleness: the option `staleness`.
        connectivity: the option `connectivity`; "farskip" needs a `reference` whose blocks have
            `routed`.
        lowering: `"eager"`, `"aot_eager"` or `"inductor"`.
        options: further options of the backend.
        dynamic: as in `torch.compile`.
        gradients: whether to compare the gradients of a random linear function of the results.
        tolerance: relative tolerance; None for the `TOLERANCE` of each tensor's dtype.

    Raises:
        AssertionError: a result or gradient is off; the message names it.
        LadderError: (wrapped by Dynamo) the model cannot be converted as asked.
        ValueError: not exactly one of `reads` and `reference` is given, or see `eager_ladder`.
    """
    if (reads is None) == (reference is None):
        raise ValueError("give one of reads= and reference=")
    if reads is not None and connectivity != "ladder":
        raise ValueError(f"connectivity={connectivity!r} needs reference=")
    num_blocks = 0

    def eager(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_blocks
        if reference is not None:
            num_blocks = len(reference.blocks)
            run = partial(reference.run, staleness=staleness, connectivity=connectivity)
            return run(*args, chosen=chosen, **kwargs)
        assert reads is not None
        with eager_ladder(model, reads, chosen=chosen, staleness=staleness) as ladder:
            result = model(*args, **kwargs)
        num_blocks = len(ladder.blocks)
        return result

    expected = run_with_gradients(eager, model, args, kwargs, gradients=gradients)
    asked: dict[str, Any] = {
        "expect_blocks": num_blocks,
        "staleness": staleness,
        "connectivity": connectivity,
        "lowering": lowering,
    }
    if chosen is not None:
        asked["blocks"] = sorted(chosen)
    asked |= dict(options or {})
    compiled = torch.compile(
        model, backend="ladderize", fullgraph=True, dynamic=dynamic, options=asked
    )
    actual = run_with_gradients(compiled, model, args, kwargs, gradients=gradients)
    standard, _ = run_with_gradients(model, model, args, kwargs, gradients=False)
    return Differences(
        assert_close(actual[0], expected[0], tolerance=tolerance),
        assert_close(actual[1], expected[1], tolerance=tolerance, what="gradient"),
        assert_close(standard, expected[0], tolerance=math.inf, what="standard output"),
    )
