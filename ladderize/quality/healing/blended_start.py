"""Blend reads from fresh to stale over the first steps of a run.

step     0     1     2     3  …
stale   1/4   2/4   3/4   all        blend_steps=3
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ladderize.frontends.compile import compile, compile_blended
from ladderize.passes.blend_reads import Blends


class BlendedStart:
    """Makes a model a ladder, at first with blended reads. Depends only on the step, for resuming.

    Args:
        model: model to compile in place.
        ladder: options of `ladderize.compile`.
        num_steps: number of steps with blended reads; 0 makes the model a ladder immediately.
    """

    def __init__(self, model: nn.Module, ladder: Mapping[str, Any], num_steps: int) -> None:
        self._model, self._ladder, self._num_steps = model, dict(ladder), num_steps
        self._blends: Blends | None = None
        self._share = 1.0
        if num_steps == 0:
            compile(model, **self._ladder)
        else:
            self._blends = Blends()
            compile_blended(model, self._blends, **self._ladder)

    def begin_step(self, step: int) -> None:
        """Call before each step, with the number of finished steps."""
        if self._blends is None:
            return
        if step >= self._num_steps:
            self._blends = None
            compile(self._model, **self._ladder)
        else:
            self._share = (step + 1) / (self._num_steps + 1)
            self._blends.fill(self._share)

    @contextmanager
    def as_ladder(self) -> Iterator[None]:
        """Make all reads stale inside the context, to evaluate the ladder."""
        if self._blends is None:
            yield
            return
        self._blends.fill(1.0)
        try:
            yield
        finally:
            self._blends.fill(self._share)
