"""Prove that a rewritten program is the ladder of its original: `ladderize.verify`.

    original ── standard form, streams ── reference ladder (substituted.py) ┐
    rewritten ── candidate.py: graph and tensors of each rank               ┴ checks ── verdict.py

check_tensors.py   every weight, or exactly its slices
structure.py       random weights: which value is computed from which, where ranks meet
                   (lockstep.py runs them, locate.py finds values, reads.py reads, diagnose.py
                   explains)
check_values.py    real weights: errors in several dtypes (precision.py), at several shapes

The passes that make ladders take no part in it; finding the blocks in the original does.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError
from ladderize.frontends.rewrite import copy_of, parameter_names
from ladderize.graph import ops
from ladderize.graph.in_flight import check_in_flight, is_launch
from ladderize.passes.before_autograd import standardize
from ladderize.passes.inline_regions import InlineRegions
from ladderize.passes.runner import apply_pass
from ladderize.streams.choose import choose_blocks
from ladderize.streams.context import AnalysisContext
from ladderize.streams.find import streams_in
from ladderize.streams.refusals import refuse_unfit
from ladderize.testing.verify.candidate import Candidate, of_program, on_cpu, read_candidate
from ladderize.testing.verify.check_tensors import check_tensors
from ladderize.testing.verify.check_values import check_values
from ladderize.testing.verify.inputs import is_dynamic, user_inputs
from ladderize.testing.verify.structure import check_structure
from ladderize.testing.verify.substituted import Original
from ladderize.testing.verify.verdict import TOLERANCES, Check, Verification

__all__ = ["Check", "Verification", "verify"]

Rewritten = ExportedProgram | str | Path | Sequence[str | Path]


def verify(
    original: ExportedProgram,
    rewritten: Rewritten,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    variants: int | None = None,
    **options: Any,
) -> Verification:
    """Check that `rewritten` is the ladder of `original` that `options` ask for.

    >>> print(ladderize.verify(program, "llama-tp8", layers="last:50%"))  # doctest: +SKIP

    The reference is `original` run with stale values in its branches; no pass that changes or
    shards the model takes part. Shared with the rewriter are the search for the stream, the choice
    of blocks, `InlineRegions`, `DropCasts`, `Functionalize`, `SpellSums`, `ReduceBranches`,
    `SplitSums` and `layout_steps`. All ranks run in this process, on the CPU.

    Args:
        original: the standard program, with its weights.
        rewritten: an exported program, a `.pt2` file, a directory of shards, or the directories
            of all ranks in their order, where each host has a copy of its own.
        dtypes: to compute in. None: the program's own, and float64 if that is float32.
        variants: sets of random inputs; with dynamic shapes each has other sizes. None: 3 where
            shapes are dynamic, else 2.
        options: `layers`, `blocks`, `staleness` and `expect_blocks`. None given: those noted in
            the files, or else the defaults.

    Raises:
        LadderError: a file cannot be read, the original has no stream to convert, or the options
            do not fit it. That `rewritten` is wrong is no error, but in the result.
    """
    candidate = _candidate(rewritten)
    noted = {k: v for k, v in (candidate.options or {}).items() if k in _CHOICES}
    config = LadderConfig.from_options(options or noted)
    standard = _standard(original, config)
    variants = variants or (3 if is_dynamic(original) else 2)
    with torch.no_grad():
        checks = _checks(original, standard, candidate, dtypes, variants)
        return Verification(_title(standard, candidate, config), tuple(checks))


_CHOICES = ("layers", "blocks", "staleness", "expect_blocks")


def _candidate(rewritten: Rewritten) -> Candidate:
    if isinstance(rewritten, ExportedProgram):
        return of_program(rewritten)
    paths = [rewritten] if isinstance(rewritten, str | Path) else rewritten
    return read_candidate([Path(path) for path in paths])


def _standard(program: ExportedProgram, config: LadderConfig) -> Original:
    gm = on_cpu(copy_of(program))
    names = parameter_names(program, gm)
    if any(is_launch(node) for node in gm.graph.nodes):
        raise LadderError(
            "The original has collectives of its own: it is one rank's part of a model.",
            cure="verify the ladder of the whole model",
        )
    apply_pass(gm, InlineRegions())
    standardize(gm, names)
    context = AnalysisContext(gm, names)
    streams = streams_in(context)
    refuse_unfit(context, streams)
    return Original.of(gm, streams, choose_blocks(streams, config), config.staleness, names)


def _title(original: Original, candidate: Candidate, config: LadderConfig) -> str:
    blocks = sum(len(stream.blocks) for stream in original.streams)
    stale = sum(map(len, original.sources))
    ranks = f", {candidate.num_ranks} ranks" if candidate.num_ranks > 1 else ""
    return f"{blocks} blocks, {stale} to be read stale (staleness {config.staleness}){ranks}"


def _checks(
    program: ExportedProgram,
    original: Original,
    candidate: Candidate,
    dtypes: Sequence[torch.dtype] | None,
    variants: int,
) -> Iterator[Check]:
    signature = _check_signature(program, candidate)
    yield signature
    if signature.status != "ok":
        return
    own = _dtype_of(program)
    wanted = list(dtypes or ([own, torch.float64] if own is torch.float32 else [own]))
    if own not in wanted:
        wanted.insert(0, own)
    wanted.sort(key=lambda dtype: dtype is not own)
    yield check_tensors(program, original, candidate)
    yield from _check_waits(candidate)
    structure = check_structure(program, original, candidate, own)
    yield from structure.checks
    yield from check_values(program, original, candidate, structure.places, wanted, variants)


def _check_signature(program: ExportedProgram, candidate: Candidate) -> Check:
    """Whether it takes and returns what the original does."""
    name = "inputs and outputs"
    wanted = _signature(program)
    for rank, part in enumerate(candidate.parts):
        found = _signature(part.program)
        if found != wanted:
            on = f" on rank {rank}" if candidate.num_ranks > 1 else ""
            return Check(name, "failed", f"{found}{on}, the original: {wanted}", "the signature")
    return Check(name, "ok", wanted)


def _signature(program: ExportedProgram) -> str:
    inputs = ", ".join(_form(ops.value(node)) for node in user_inputs(program))
    return f"({inputs}) -> {len(program.graph_signature.user_outputs)} outputs"


def _form(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    sizes = ", ".join(str(size) if isinstance(size, int) else "*" for size in value.shape)
    return f"{str(value.dtype).removeprefix('torch.')} [{sizes}]"


def _check_waits(candidate: Candidate) -> Iterator[Check]:
    """Each collective is waited for once, before anything reads its result."""
    if candidate.num_ranks == 1:
        return
    name = "waits"
    for rank, part in enumerate(candidate.parts):
        try:
            check_in_flight(part.gm.graph)
        except LadderError as error:
            blocker = error.blockers[0]
            yield Check(name, "failed", f"on rank {rank}, {blocker.what}", blocker.where)
            return
    launches = [node for node in candidate.parts[0].gm.graph.nodes if is_launch(node)]
    yield Check(name, "ok", f"{len(launches)} launches, each with one wait before any reader")


def _dtype_of(program: ExportedProgram) -> torch.dtype:
    """That of most of the weights."""
    numbers: dict[torch.dtype, int] = {}
    for tensor in program.state_dict.values():
        if tensor.dtype in TOLERANCES:
            numbers[tensor.dtype] = numbers.get(tensor.dtype, 0) + tensor.numel()
    return max(numbers, key=numbers.__getitem__, default=torch.float32)
