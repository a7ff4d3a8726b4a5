"""Fit the first weights that read the stream to stale reads, by least squares.

    standard   a = norm(x1)    q = a W            ladder    s = norm(x0)    q' = s V
    V minimizes ‖a W - s V‖² + ridge ‖V - W‖², summed over all tokens

Blocks are fitted in graph order, with the ladder's stream computed by the blocks fitted before.
Only the sums `sᵀs` and `sᵀ(a - s)` over tokens are kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ladderize.errors import Blocker, LadderError
from ladderize.quality.fitting.read_products import FirstRead, FirstWeight
from ladderize.quality.fitting.traced_batches import TracedBatch, trace_batches
from ladderize.quality.healing.teacher import unshare


class CannotFitError(LadderError):
    """No weight of the converted blocks can be fitted, for example because all are experts."""


OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class FittedReads:
    """The result of `fit_reads`.

    Attributes:
        weights: names of the fitted parameters.
        left: other ops that mix or select what a converted block reads: "block 3: grouped_mm".
    """

    weights: tuple[str, ...]
    left: tuple[str, ...]


@torch.no_grad()
def fit_reads(
    model: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    ridge: float = 0.05,
    on_progress: OnProgress | None = None,
) -> FittedReads:
    """Fit the first weights of each converted block of `model`, in place, to those of `teacher`.

    These are the weights of products that read the stream through norms and other cheap ops only,
    including frozen ones. Weights with another reader, and weights of experts and LoRA adapters,
    are unchanged.

    Args:
        model: model with the weights of the ladder.
        teacher: standard model in eval mode, with parameters of the same names. It gets its own
            copies of fitted parameters that it shares with `model`.
        batches: keyword arguments of calls; tokens whose `attention_mask` is 0 do not count. Each
            batch keeps a few values of the size of its stream until the end. With a process group,
            all ranks pass the same batches and get the first rank's weights.
        options: options of `LadderConfig`.
        ridge: strength of the pull toward the old weights, above 0, as a fraction of the mean
            square of a read.
        on_progress: called with the number of fitted reads and of all reads.

    Raises:
        LadderError: there are no batches, the model cannot be converted, no weight can be fitted,
            or one would not be finite.
    """
    blockers = [] if batches else [Blocker("there are no batches")]
    if not ridge > 0:
        blockers.append(Blocker(f"ridge={ridge!r} is not above 0"))
    if blockers:
        raise LadderError("Reads cannot be fitted with these arguments:", blockers)
    traced = trace_batches(teacher, batches, options)
    if not traced[0].reads:
        raise CannotFitError(
            "No weight of the converted blocks can be fitted:",
            map(Blocker, traced[0].left),
            "train without fitting",
        )
    unshare(teacher, model, {name for each in traced for name in each.fitted})
    runs = [each.run(model, teacher) for each in traced]
    for number in range(len(traced[0].reads)):
        sums = _Sums()
        for each, run, batch in zip(traced, runs, batches, strict=True):
            first = each.reads[number]
            sums.add(*run.advance(first.until, first.read), batch.get("attention_mask"))
        _fit(traced[0], traced[0].reads[number], model, teacher, sums, ridge)
        if on_progress is not None:
            on_progress(number + 1, len(traced[0].reads))
    return FittedReads(tuple(traced[0].fitted), traced[0].left)


class _Sums:
    """Sums over tokens: `sᵀs` and `sᵀ(a - s)`, `[inputs, inputs]` each, in float32."""

    squares: Tensor
    errors: Tensor

    def add(self, standard: Tensor, ladder: Tensor, mask: Tensor | None) -> None:
        device = ladder.device.type
        with torch.autocast(device, enabled=False):
            fresh, stale = (_rows(each, mask) for each in (standard, ladder))
            squares, errors = stale.T @ stale, stale.T @ (fresh - stale)
            if not hasattr(self, "squares"):
                self.squares, self.errors = squares, errors
            else:
                self.squares += squares
                self.errors += errors


def _rows(read: Tensor, mask: Tensor | None) -> Tensor:
    """The read as `[tokens, inputs]` in float32, 0 for padding."""
    rows = read.flatten(0, -2).float()
    if mask is None or mask.numel() != len(rows):
        return rows
    return rows * mask.reshape(-1, 1).to(rows.dtype)


def _fit(
    traced: TracedBatch,
    first: FirstRead,
    model: nn.Module,
    teacher: nn.Module,
    sums: _Sums,
    ridge: float,
) -> None:
    """Fit and write the weights of one read.

    Raises:
        LadderError: the solution is not finite.
    """
    with torch.autocast(sums.squares.device.type, enabled=False):
        held = sums.squares.clone()
        held.diagonal().add_(ridge * held.diagonal().mean())
        for weight in first.weights:
            name = traced.names[weight.node]
            mine, theirs = (_columns(each.get_parameter(name), weight) for each in (model, teacher))
            old, wanted = mine.float(), theirs.float()
            right = sums.errors @ wanted + sums.squares @ (wanted - old)
            change, failed = torch.linalg.solve_ex(held, right)
            found = _of_first((old + change).masked_fill(failed > 0, torch.nan).to(mine.dtype))
            if not found.isfinite().all():
                raise LadderError(
                    f"The least squares of block {first.block} have no finite solution: {name}.",
                    cure="give more tokens, and use bfloat16 instead of float16",
                )
            mine.copy_(found)


def _of_first(values: Tensor) -> Tensor:
    """The first rank's values, if there is a process group: ranks may differ in the last bits."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(values := values.contiguous(), 0)
    return values


def _columns(parameter: Tensor, weight: FirstWeight) -> Tensor:
    """A view of `parameter`, `[inputs, outputs]`."""
    columns = parameter.detach()
    return columns.T if weight.has_output_rows else columns
