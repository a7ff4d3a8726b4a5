"""One ready check of a model: compiled by the backend `ladderize` = an eager ladder of it."""

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
    """What `assert_ladder_equal` measured: largest absolute differences.

    >>> found = Differences(output=2e-7, gradients=1e-6, standard=0.3)
    >>> found.standard > 1000 * found.output  # a wrong read would have shown
    True

    Attributes:
        output: of the compiled model's results to the eager ladder's.
        gradients: the same of the gradients by parameter and input; 0.0 when none were asked for.
        standard: of the standard model's results to the eager ladder's. Where it is not far above
            `output`, the comparison could not have told the two nets apart.
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
        model: with randomly initialized or trained weights; dropout must be off. (Fresh weights
            of transformers' models are so small that a wrong read may hide in the tolerance; see
            `Differences.standard`.)
        args, kwargs: what `model` is called with. Gradients are taken for the floating tensors
            among them, and for the parameters.
        reads: the modules whose input is what a block reads, as for `eager_ladder`; or
        reference: the same model as blocks. Exactly its blocks, or those that `eager_ladder`
            counted, must be found in `model`, unless `options` has another `expect_blocks`.
        chosen: indices of the blocks to convert, None for all. (`options={"blocks": ...}` asks
            for them in another spelling.)
        staleness: as in the options of the backend.
        connectivity: the same; "farskip" needs a `reference` whose blocks tell what is `routed`.
        lowering: `"eager"`, `"aot_eager"` or `"inductor"`.
        options: further options of the backend.
        dynamic: as in `torch.compile`.
        gradients: whether to compare the gradients of a random linear function of the results.
        tolerance: None takes `TOLERANCE` of each tensor's dtype.

    Raises:
        AssertionError: naming the result or gradient that is off.
        LadderError: (wrapped by Dynamo) when the model cannot be converted as asked.
        ValueError: when not exactly one of `reads` and `reference` is given, or as `eager_ladder`.
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
