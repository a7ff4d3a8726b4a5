"""Prove that a rewritten program is the ladder of its original: `ladderize.verify`.

    original ── standard form, streams ── reference ladder (substituted.py) ┐
    rewritten ── candidate.py: graph and tensors of each rank               ┴ checks ── verdict.py

check_signature.py     inputs, outputs and written tensors
check_tensors.py       every weight, or exactly its slices
check_collectives.py   waited for, over all ranks, hidden behind compute
structure.py           random weights: what each value is computed from, and where ranks meet
                       (lockstep.py runs ranks, locate.py finds values, reads.py follows reads,
                       diagnose.py explains)
check_values.py        real weights: errors in several dtypes (precision.py) and at several sizes
                       (sizes.py), and written state (check_state.py)
check_gradients.py     for trainable programs (differentiable.py: gradients of collectives)

It does not use the passes that make ladders, but it does use the search for blocks. The verdict
prints everything that is shared (`verdict.SHARED`).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ladderize.config.connectivity import LADDER
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError
from ladderize.frontends.rewrite import copy_of, parameter_names
from ladderize.graph.in_flight import is_launch
from ladderize.passes.before_autograd import standardize
from ladderize.passes.inline_regions import InlineRegions
from ladderize.passes.runner import apply_pass
from ladderize.streams.choose import choose_blocks, refuse_other_reads
from ladderize.streams.context import AnalysisContext
from ladderize.streams.contributions import find_contributions
from ladderize.streams.find import streams_in
from ladderize.streams.left_out import Connectivity
from ladderize.streams.refusals import refuse_unfit
from ladderize.streams.restore import restore_standard
from ladderize.streams.stale_halves import refuse_undecided
from ladderize.testing.verify.candidate import Candidate, of_program, on_cpu, read_candidate
from ladderize.testing.verify.check_collectives import check_groups, check_hidden, check_waits
from ladderize.testing.verify.check_gradients import GRADIENTS, check_gradients, is_trained
from ladderize.testing.verify.check_signature import check_signature
from ladderize.testing.verify.check_tensors import check_tensors, find_unfit
from ladderize.testing.verify.check_values import check_values, why_it_fails
from ladderize.testing.verify.inputs import is_dynamic
from ladderize.testing.verify.sizes import MAX_BYTES, plan_sizes
from ladderize.testing.verify.structure import RECURRENCE, check_structure
from ladderize.testing.verify.substituted import Original
from ladderize.testing.verify.verdict import TOLERANCES, Check, Verification

__all__ = ["Check", "Verification", "verify"]

Rewritten = ExportedProgram | Candidate | str | Path | Sequence[str | Path]


def verify(
    original: ExportedProgram,
    rewritten: Rewritten,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    variants: int | None = None,
    max_bytes: int = MAX_BYTES,
    **options: Any,
) -> Verification:
    """Check that `rewritten` is the ladder of `original` that `options` ask for.

    >>> print(ladderize.verify(program, "llama-tp8", layers="last:50%"))  # doctest: +SKIP

    The reference is `original`, run with stale values in its branches. No pass that converts or
    shards the model is used. Shared with the rewriter are the search for the stream, the choice of
    blocks, what a read leaves out, the op vocabulary, the file reader, `InlineRegions`,
    `SpellEngineOps`, `DropCasts`, `Functionalize`, `SpellSums`, `ReduceBranches`, `find_cuts`,
    `SplitSums`, `layout_steps` and, for the order that runs, `DeferWaits`. All ranks run in this
    process, on the CPU.

    Args:
        original: standard program, with its weights.
        rewritten: an exported program, a `.pt2` file, a sharded directory, or the directories of
            all ranks in order if each host has its own copy; or a `Candidate`.
        dtypes: dtypes to compute in; None for the program's own, and float64 if that is float32.
        variants: number of random inputs per dtype; with dynamic shapes, each has other small
            sizes. None for 3 with dynamic shapes, otherwise 2. In the program's own dtype, further
            sizes cover the range of each dynamic dim, including its ends.
        max_bytes: memory limit for the values of one run, in bytes; larger sizes are skipped, and
            the check `sizes` says so.
        options: `layers`, `blocks`, `staleness`, `connectivity`, `routed`, `variant` and
            `expect_blocks`. Without any, those recorded in the files, or else the defaults.

    Returns:
        The verdict; that `rewritten` is wrong is not an exception.

    Raises:
        LadderError: a file cannot be read, the original has no stream to convert, or the options
            do not fit it.
    """
    candidate = _candidate(rewritten)
    noted = {k: v for k, v in (candidate.options or {}).items() if k in _CHOICES}
    config = LadderConfig.from_options(options or noted)
    if config.period:
        raise LadderError(
            "A desync residual cannot be verified: there is no reference to compare with.",
            cure="compare it with a hand-written model",
        )
    standard = _standard(original, config)
    variants = variants or (3 if is_dynamic(original) else 2)
    with torch.no_grad():
        checks = _checks(original, standard, candidate, dtypes, variants, max_bytes)
        return Verification(_title(standard, candidate, config), tuple(checks))


_CHOICES = ("layers", "blocks", "staleness", "connectivity", "routed", "variant", "expect_blocks")


def _candidate(rewritten: Rewritten) -> Candidate:
    if isinstance(rewritten, Candidate):
        return rewritten
    if isinstance(rewritten, ExportedProgram):
        return of_program(rewritten)
    paths = [rewritten] if isinstance(rewritten, str | Path) else rewritten
    return read_candidate([Path(path) for path in paths])


def _standard(program: ExportedProgram, config: LadderConfig) -> Original:
    gm = on_cpu(copy_of(program))
    names = parameter_names(program, gm)
    if any(is_launch(node) for node in gm.graph.nodes):
        raise LadderError(
            "The original contains collectives: it is one rank's part of a model.",
            cure="verify the ladder of the whole model",
        )
    apply_pass(gm, InlineRegions())
    standardize(gm, names)
    context = AnalysisContext(gm, names)
    streams = streams_in(context)
    stale: tuple[dict[int, int], ...] = tuple({} for _ in streams)
    if config.names_a_ladder and any(stream.stale_blocks for stream in streams):
        restored = restore_standard(context, streams)
        context, streams, stale = restored.context, restored.streams, restored.stale
        names = {restored.copies[node]: name for node, name in names.items()}
    refuse_unfit(context, streams)
    if config.names_a_ladder:
        refuse_undecided(context, streams, config)
    chosen = choose_blocks(streams, config)
    connectivity = Connectivity.of(config, find_contributions(context, streams, config))
    standard = Original.of(context.gm, streams, chosen, connectivity, names)
    refuse_other_reads(standard.reads, stale)
    return standard


def _title(original: Original, candidate: Candidate, config: LadderConfig) -> str:
    blocks = sum(len(stream.blocks) for stream in original.streams)
    ranks = f", {candidate.num_ranks} ranks" if candidate.num_ranks > 1 else ""
    forms = {config.connectivity, config.variant} - {LADDER}
    form = "".join(forms) or f"staleness {config.staleness}"
    stale = f"{original.num_stale} to read stale ({form})"
    return f"{blocks} blocks, {stale}{ranks}"


def _checks(
    program: ExportedProgram,
    original: Original,
    candidate: Candidate,
    dtypes: Sequence[torch.dtype] | None,
    variants: int,
    max_bytes: int,
) -> Iterator[Check]:
    signature = check_signature(program, candidate)
    yield signature
    if signature.status != "ok":
        return
    yield check_tensors(program, original, candidate)
    if candidate.num_ranks > 1:
        yield check_waits(candidate)
    groups = check_groups(candidate)
    yield groups
    unfit = find_unfit(candidate) or (groups.found if groups.status != "ok" else "")
    if unfit:
        yield Check(RECURRENCE, "not run", unfit)
        return
    own = _dtype_of(program)
    graphs = [program.graph, candidate.parts[0].gm.graph]
    fails = partial(why_it_fails, program, original)
    plan = plan_sizes(program, graphs, variants, max_bytes, fails)
    structure = check_structure(program, original, candidate, own, plan.largest)
    yield from structure.checks
    if candidate.num_ranks > 1:
        yield check_hidden(original, candidate, structure.places)
    wanted = _wanted_dtypes(own, dtypes)
    yield from check_values(program, original, candidate, structure.places, wanted, plan)
    if is_trained(program):
        if any(check.status != "ok" for check in structure.checks):
            yield Check(GRADIENTS, "not run", "the structure is wrong")
        else:
            weights = structure.weights
            yield check_gradients(program, original, candidate, weights, own, plan.base[0])


def _wanted_dtypes(own: torch.dtype, dtypes: Sequence[torch.dtype] | None) -> list[torch.dtype]:
    """The dtypes to compute in, the program's own first."""
    wanted = dtypes or ([own, torch.float64] if own is torch.float32 else [own])
    return list(dict.fromkeys((own, *wanted)))


def _dtype_of(program: ExportedProgram) -> torch.dtype:
    """The dtype of most of the weights."""
    numbers: dict[torch.dtype, int] = {}
    for tensor in program.state_dict.values():
        if tensor.dtype in TOLERANCES:
            numbers[tensor.dtype] = numbers.get(tensor.dtype, 0) + tensor.numel()
    return max(numbers, key=numbers.__getitem__, default=torch.float32)
