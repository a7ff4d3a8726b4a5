"""`ladderize.sensitivity`: find the blocks to convert for each share of hidden communication.

    model, batches ── each block alone ── growing sets, shrinking sets ── BlockPlan
                   └─ for comparison: all, the last ones, only attention, only MLPs

The notes file holds every measurement; an interrupted run continues from it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ladderize import compat
from ladderize.config.block_plan import BlockPlan, MeasuredBlock, MeasuredSet
from ladderize.config.connectivity import LADDER
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.checkpoints.own_entry import own_entry
from ladderize.frontends.compile import restore
from ladderize.frontends.explain import explain_call
from ladderize.quality.sensitivity.damage_meter import Batch, Damage, DamageMeter, Ranks
from ladderize.quality.sensitivity.measured_notes import MeasuredNotes
from ladderize.quality.sensitivity.set_search import Blocks, exchange, grow, shrink
from ladderize.report.data import BlockReport
from ladderize.report.publish import versions

Progress = Callable[[int, int], None]
"""Called with the number of sets measured so far and the number expected."""

_AT_ONCE = 16
"""Number of sets measured between two writes of the notes."""

SHARES = (0.25, 0.5, 0.75, 1.0)


def sensitivity(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    shares: Sequence[float] = SHARES,
    width: int = 8,
    sets_at_once: int = 1,
    notes: Path | None = None,
    on_progress: Progress | None = None,
    **options: Any,
) -> BlockPlan:
    """Measure what converting blocks costs a model, alone and in sets. Nothing is compiled.

    >>> plan = ladderize.sensitivity(model, [{"input_ids": ids}])
    >>> plan.best(0.5).blocks, plan.best(0.5).kl          # hides half of the communication
    >>> ladderize.compile(model, blocks=plan.best(0.5).blocks)

    Sets grow from no block and shrink from all blocks, one block at a time: of the `width` most
    promising candidates, the one that costs least. For each of `shares`, the best set is improved
    by exchanging blocks. One graph is traced; a set runs op by op, from the first block that
    differs from an earlier set.

    Args:
        model: standard model. It runs in eval mode and is not changed.
        batches: keyword arguments of its calls: tensors with the batch first, all of one shape. A
            few hundred tokens rank blocks well; measure a set again on other text before use.
        shares: shares of hidden communication, 0 to 1, for which sets are improved and compared
            with the last blocks of the model.
        width: number of candidate blocks measured each time a set grows or shrinks.
        sets_at_once: sets measured in one run, each on its own copy of the batch; more than 1 is
            faster if a batch does not fill the device.
        notes: file that keeps measurements for an interrupted run. It is removed at the end.
        on_progress: called with the number of measured and expected sets.
        options: options of `LadderConfig`: `staleness`, `mesh`. All ranks of a mesh call this.

    Returns:
        The plan. `write_file(path, plan.model_dump_json())` writes a file for `blocks=`.

    Raises:
        LadderError: the model cannot be converted, is a ladder, or returns no logits; or a share
            is not between 0 and 1.
    """
    _refuse_arguments(batches, shares, options)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return _Search(model, batches, options, width, sets_at_once, notes, on_progress).run(shares)
    finally:
        restore(model)
        for module, was_training in modes:
            module.training = was_training


def _refuse_arguments(
    batches: Sequence[Batch], shares: Sequence[float], options: Mapping[str, Any]
) -> None:
    blockers = [Blocker(f"a share of {share:g}") for share in shares if not 0 < share <= 1]
    blockers += [
        Blocker(f"{name}= cannot be given, because blocks are the result")
        for name in ("blocks", "layers")
        if options.get(name) is not None
    ]
    if (connectivity := options.get("connectivity", LADDER)) != LADDER:
        blockers.append(Blocker(f"connectivity={connectivity!r}: only ladders can be measured"))
    blockers += [] if batches else [Blocker("no batch")]
    if blockers:
        raise LadderError("Sensitivity cannot be measured with these arguments:", blockers)


class _Search:
    """The search on one model, with its measurements."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        options: Mapping[str, Any],
        width: int,
        sets_at_once: int,
        notes: Path | None,
        on_progress: Progress | None,
    ) -> None:
        config = LadderConfig.from_options(options)
        self.staleness = config.staleness
        self.name = _name_of(model)
        self.reports = _blocks_of(model, batches[0], options)
        self.shares = _shares(self.reports)
        mesh = config.device_mesh
        ranks = Ranks(None if mesh is None else mesh.get_group())
        self.meter = DamageMeter(model, batches, options, sets_at_once, ranks)
        assert self.meter.blocks == sorted(self.shares), "the report and the graph disagree"
        self.width = width
        self.expected = 0
        self.on_progress = on_progress or _tell_nobody
        self.notes = MeasuredNotes(notes, self._identity(batches), ranks)

    def run(self, shares: Sequence[float]) -> BlockPlan:
        count, width = len(self.shares), min(self.width, len(self.shares))
        self.expected = 2 * count * (1 + width) + len(shares) * (count + width**2)  # at most
        references = {name: self.set_of(s) for name, s in self._references(shares).items()}
        sets = self._grown_and_shrunk(references["all"].kl)
        for share in shares:
            found = min((each for each in sets if each.share >= share - 1e-6), key=_cost)
            better, _ = exchange(
                self.measure, frozenset(found.blocks), found.kl, self.shares, self.width
            )
            sets.append(self.set_of(better))
        distinct = {tuple(each.blocks): each for each in (*sets, *references.values())}.values()
        plan = BlockPlan(
            model=self.name,
            staleness=self.staleness,
            tokens=self.meter.tokens,
            standard_loss=self.meter.standard_loss,
            blocks=[self._block(number) for number in range(len(self.reports))],
            sets=sorted(distinct, key=lambda each: (len(each.blocks), each.kl)),
            references=references,
            versions=dict(versions()),
        )
        self.notes.remove_file()
        return plan

    def _grown_and_shrunk(self, damage_of_all: float) -> list[MeasuredSet]:
        everything = frozenset(self.shares)
        grown = grow(self.measure, self.shares, self.width)
        shrunk = shrink(self.measure, everything, damage_of_all, self.width)
        return [self.set_of(blocks) for blocks, _ in (*grown, (everything, damage_of_all), *shrunk)]

    def measure(self, base: Blocks, sets: Sequence[Blocks]) -> list[float]:
        """The divergence of each set; sets in the notes are not measured again."""
        new = [each for each in dict.fromkeys(sets) if self.notes.get(each) is None]
        new.sort(key=lambda each: min(each ^ base, default=-1))  # longest common start first
        for begin in range(0, len(new), _AT_ONCE):
            part = new[begin : begin + _AT_ONCE]
            self.notes.add(part, self.meter.measure(base, part))
            self.on_progress(len(self.notes), max(self.expected, len(self.notes)))
        return [self._damage(each).kl for each in sets]

    def set_of(self, blocks: Blocks) -> MeasuredSet:
        self.measure(frozenset(), [blocks])
        damage = self._damage(blocks)
        share = min(sum(self.shares[block] for block in blocks), 1.0)
        return MeasuredSet(blocks=sorted(blocks), share=share, kl=damage.kl, loss=damage.loss)

    def _damage(self, blocks: Blocks) -> Damage:
        found = self.notes.get(blocks)
        assert found is not None, "measured before"
        return found

    def _references(self, shares: Sequence[float]) -> dict[str, Blocks]:
        count = len(self.reports)
        named = {"all": frozenset(self.shares)}
        for share in sorted(set(shares) - {1.0}):
            last = range(count - int(count * share + 0.5), count)
            named[f"last:{100 * share:g}%"] = frozenset(last) & named["all"]
        for kind in dict.fromkeys(report.kind for report in self.reports):
            named[f"{kind} only"] = frozenset(
                b for b in self.shares if self.reports[b].kind == kind
            )
        return {name: blocks for name, blocks in named.items() if blocks}

    def _block(self, number: int) -> MeasuredBlock:
        report = self.reports[number]
        damage = self.notes.get(frozenset({number}))
        return MeasuredBlock(
            module=report.module,
            kind=report.kind,
            layer=report.layer,
            share=self.shares.get(number, 0.0),
            kl=None if damage is None else damage.kl,
            loss=None if damage is None else damage.loss,
        )

    def _identity(self, batches: Sequence[Batch]) -> dict[str, Any]:
        """The identity of the measurements: loss and inputs distinguish weights and text."""
        sums = [
            float(v.double().sum()) for b in batches for v in b.values() if isinstance(v, Tensor)
        ]
        return {
            "model": self.name,
            "staleness": self.staleness,
            "blocks": len(self.reports),
            "tokens": self.meter.tokens,
            "standard_loss": self.meter.standard_loss,
            "inputs": math.fsum(sums),
        }


def _cost(found: MeasuredSet) -> float:
    return found.kl


def _tell_nobody(_done: int, _total: int) -> None:
    pass


def _name_of(model: nn.Module) -> str:
    path = getattr(getattr(model, "config", None), "name_or_path", "") or ""
    return " ".join(filter(None, [type(model).__name__, str(path)]))


def _blocks_of(model: nn.Module, batch: Batch, options: Mapping[str, Any]) -> list[BlockReport]:
    """The blocks in order.

    Raises:
        LadderError: the model is refused, compiled, or already a ladder.
    """
    if compat.is_compiled_wrapper(model) or any(map(compat.is_compiled_in_place, model.modules())):
        raise LadderError(
            "This model is compiled.", cure="call ladderize.restore(model), or load it again"
        )
    if (entry := own_entry(model)) is not None:
        raise LadderError(
            f"{_name_of(model)} is the checkpoint of a ladder: config.json has {entry}.",
            cure="measure the standard model that it was made from",
        )
    report = explain_call(model, (), batch, LadderConfig.from_options(options))
    report.raise_refusal()
    stale = [
        Blocker("a branch that already reads stale", s) for t in report.streams for s in t.stale
    ]
    if stale:
        raise LadderError("Sensitivity needs a standard model; this one is a ladder:", stale)
    return list(report.blocks)


def _shares(reports: Sequence[BlockReport]) -> dict[int, float]:
    """The fraction of the communication that each stale read would hide.

    A stale read hides the all-reduce of the previous block.
    """
    sent = dict(_hidden_bytes(reports))
    total = sum(sent.values())
    return {number: sent[number] / total for number in sent}


def _hidden_bytes(reports: Sequence[BlockReport]) -> Iterator[tuple[int, float]]:
    for number, report in enumerate(reports):
        if report.is_rewired:
            yield number, float(reports[max(number - 1, 0)].reduce_bytes or 1)
