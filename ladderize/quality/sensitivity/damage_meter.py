"""Measure the damage of sets of converted blocks with one traced graph, by changing its reads.

    model, batches ── one graph with a weight for each read ── sets ── KL(standard ‖ ladder), loss

A set runs from the first block that differs from the previous set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ladderize.errors import LadderError
from ladderize.frontends.compile import compile_blended, restore
from ladderize.passes.blend_reads import Blends
from ladderize.quality.measures import Measures, logits_of, measure, positions_of
from ladderize.quality.sensitivity.reusing_run import ReusingRun, reusing_lowering
from ladderize.quality.sensitivity.set_search import Blocks

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Damage:
    """The damage of a set.

    Attributes:
        kl: KL(standard ‖ ladder), in nats per token.
        loss: loss of the ladder, in nats per token; None without targets.
    """

    kl: float
    loss: float | None


Found = TypeVar("Found")


@dataclass(frozen=True)
class Ranks:
    """The ranks that measure one model together, or this process alone.

    Attributes:
        group: their process group; None for the default group, if there is one.
    """

    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return not dist.is_initialized() or dist.get_rank(self.group) == 0

    def of_first(self, found: Found) -> Found:
        """The first rank's value, because ranks may differ in the last bits and must agree.

        All ranks must call this.
        """
        if not dist.is_initialized() or dist.get_world_size(self.group) == 1:
            return found
        first = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        shared = [found]
        dist.broadcast_object_list(shared, first, self.group)
        return shared[0]


class DamageMeter:
    """Measures sets of blocks of one model.

    Attributes:
        blocks: indices of the blocks that can be converted.
        standard_loss: loss of the standard model, in nats per token; None without targets.
        tokens: number of compared predictions.
        num_nodes: number of nodes run so far.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        options: Mapping[str, Any],
        sets_at_once: int = 1,
        ranks: Ranks | None = None,
    ) -> None:
        """
        Args:
            model: model in eval mode. It is compiled in place until `close`.
            batches: keyword arguments of calls of one shape, with the batch as the first dim.
            options: options of `LadderConfig` except `blocks` and `layers`.
            sets_at_once: number of sets measured in one run, on as many copies of the batch.
            ranks: ranks that measure together; None for all.

        Raises:
            LadderError: the model cannot be converted or returns no logits; or, with
                `sets_at_once`, the first dim of its stream is not the batch.
        """
        self._blends = Blends(0.0)
        self._runs: list[ReusingRun] = []
        self._sets_at_once = sets_at_once
        self._ranks = ranks or Ranks()
        self._predicts_next = bool(getattr(model, "can_generate", lambda: False)())
        self._model = compile_blended(
            model,
            self._blends,
            lower=reusing_lowering(self._runs),
            dynamic=False,
            **{**options, "strict": True},
        )
        self._batches = list(batches)
        self._repeated = [_repeated(batch, sets_at_once) for batch in batches]
        self._standard: list[Tensor] = []
        for batch in self._repeated:
            logits = self._logits(batch, [frozenset()])
            self._standard.append(logits[: len(logits) // sets_at_once].clone())
        self.blocks = sorted(self._blends.values)
        self._refuse_other_dims()
        found = [self._compare(number, logits) for number, logits in enumerate(self._standard)]
        joined = Measures.joined(found)
        self.standard_loss, self.tokens = joined.mean_standard_loss, int(joined.tokens.sum())

    @property
    def num_nodes(self) -> int:
        return sum(run.num_nodes for run in self._runs)

    def measure(self, base: Blocks, sets: Sequence[Blocks]) -> list[Damage]:
        """The damage of each of `sets`, which reuse the run of `base` up to the first difference.

        All ranks call this with the same sets and get the first rank's results.
        """
        order = sorted(range(len(sets)), key=lambda i: min(sets[i] ^ base, default=-1))
        parts: list[list[Measures]] = [[] for _ in sets]
        for number, batch in enumerate(self._repeated):
            self._keep(batch, base)
            for begin in range(0, len(order), self._sets_at_once):
                together = order[begin : begin + self._sets_at_once]
                logits = self._logits(batch, [sets[i] for i in together])
                for i, part in zip(together, logits.chunk(self._sets_at_once), strict=False):
                    parts[i].append(self._compare(number, part))
        for run in self._runs:
            run.forget()
        joined = map(Measures.joined, parts)
        return self._ranks.of_first([Damage(each.mean_kl, each.mean_loss) for each in joined])

    def close(self) -> None:
        """Restore the model."""
        restore(self._model)
        self._runs.clear()

    def _refuse_other_dims(self) -> None:
        """Refuse several sets in one run unless the stream is `[batch, …]`: they would mix."""
        if self._sets_at_once == 1:
            return
        batch, everything = self._repeated[0], frozenset(self.blocks)
        alike = self._logits(batch, [everything]).chunk(self._sets_at_once)[0]
        mixed = self._logits(batch, [everything, frozenset()]).chunk(self._sets_at_once)
        wanted = [alike, *[self._standard[0]] * (self._sets_at_once - 1)]
        if not all(torch.allclose(*pair, atol=1e-3) for pair in zip(mixed, wanted, strict=True)):
            raise LadderError(
                "Several sets cannot be measured in one run of this model: the first dim of its "
                "stream is not the batch.",
                cure="use sets_at_once=1",
            )

    def _keep(self, batch: Batch, base: Blocks) -> None:
        """Run `base`, and keep the values that the next runs start from."""
        for run in self._runs:
            run.keeps = True
        self._logits(batch, [base])
        for run in self._runs:
            run.keeps = False

    def _logits(self, batch: Batch, sets: Sequence[Blocks]) -> Tensor:
        """The logits of a repeated batch, one copy per set; the last set fills the rest."""
        missing = self._sets_at_once - len(sets)
        self._blends.choose(*sets, *[sets[-1]] * missing)
        with torch.no_grad():
            return logits_of(self._model(**batch))

    def _compare(self, number: int, logits: Tensor) -> Measures:
        standard = self._standard[number]
        targets, compared = positions_of(
            self._batches[number], standard, predicts_next=self._predicts_next
        )
        return measure(standard, logits, targets, compared)


def _repeated(batch: Batch, times: int) -> Batch:
    """A batch with its rows repeated `times` times, one copy after the other."""
    rows = {value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.dim()}
    if times == 1 or not rows:
        return batch
    most = max(rows)
    return {
        name: value.repeat(times, *[1] * (value.dim() - 1))
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == most
        else value
        for name, value in batch.items()
    }
