"""The table of planted faults, with the check that finds each; it is shown in docs/testing.md.

    PYTHONPATH=tests python -m helpers.fault_rows --write    put the table there

tests/testing/test_faults.py plants each of them, except those that other tests plant.
"""

import argparse
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from helpers import faults, wrappers

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"
aten = torch.ops.aten


@dataclass(frozen=True)
class Fault:
    """A fault and the check that finds it.

    Attributes:
        what: description of the fault.
        check: check of `verify` that fails.
        says: part of its message.
        plant: changes a graph, or the tensors of a rank, in place.
        net: model of `test_faults.py`.
        ranks: number of ranks that the model is sharded over.
        on: ranks to plant it on; None for all.
    """

    what: str
    check: str
    says: str
    plant: Callable[..., Any]
    net: str = "mlps"
    ranks: int = 2
    on: int | None = None


@dataclass(frozen=True)
class Elsewhere:
    """A fault that another test plants.

    Attributes:
        what: description of the fault.
        named_by: check of `verify` or of the compiler that finds it.
        test: test that plants it.
    """

    what: str
    named_by: str
    test: str


@dataclass(frozen=True)
class Emitted:
    """A fault in emitted code, planted in a hand-written wrapper.

    Attributes:
        what: description of the fault.
        body: body of `call`.
        find: function that finds it.
        says: part of its message.
    """

    what: str
    body: str
    find: Callable[[str], Sequence[str]]
    says: str


@dataclass(frozen=True)
class NotCatchable:
    what: str
    reason: str


GRAPH = (
    Fault("a branch reads fresh", "recurrence", "reads x3, fresh", faults.left_fresh, ranks=1),
    Fault(
        "a branch reads two blocks early",
        "recurrence",
        "2 blocks stale",
        faults.two_blocks_early,
        ranks=1,
    ),
    Fault(
        "a branch also reads an earlier value, times zero",
        "recurrence",
        "is computed from {y0, y1, y2}",
        faults.read_times_zero,
        ranks=1,
    ),
    Fault(
        "the skip is rerouted", "recurrence", "its skip carries x1", faults.skip_rerouted, ranks=1
    ),
    Fault(
        "what follows the last block reads stale",
        "recurrence",
        "output 0 is computed from {y2}",
        faults.final_norm_reads_stale,
        ranks=1,
    ),
    Fault(
        "a residual add is dropped",
        "recurrence",
        "its skip carries x2",
        faults.branch_dropped,
        ranks=1,
    ),
    Fault(
        "two adds are swapped",
        "recurrence",
        "y1 is never computed",
        faults.branches_exchanged,
        ranks=1,
    ),
    Fault(
        "a branch is added twice", "recurrence", "y2 is never computed", faults.added_twice, ranks=1
    ),
    Fault(
        "a branch is halved", "recurrence", "y1 is never computed", faults.branch_halved, ranks=1
    ),
    Fault(
        "a branch is subtracted", "recurrence", "y2 is never computed", faults.subtracted, ranks=1
    ),
    Fault(
        "a norm has another epsilon",
        "recurrence",
        "y2 is never computed",
        faults.other_epsilon,
        ranks=1,
    ),
    Fault(
        "a sum goes through bfloat16", "recurrence", "y2 is never computed", faults.rounded, ranks=1
    ),
    Fault(
        "the output is flipped", "recurrence", "output 0 is off", faults.output_permuted, ranks=1
    ),
    Fault(
        "a value has another shape than its graph says",
        "shapes",
        "its graph says [2, 7]",
        faults.said_otherwise,
        ranks=1,
    ),
    Fault(
        "an op cannot take its operands",
        "shapes",
        "view_default fails on rank 0",
        faults.impossible_op,
        ranks=1,
    ),
    Elsewhere(
        "a stale read across the start of a segment",
        "`recurrence`",
        "tests/testing/test_verify.py::test_faults_in_a_graph",
    ),
    Elsewhere(
        "a fresh read in a branch that weights scale by nearly nothing",
        "`recurrence`",
        "tests/testing/test_verify.py::test_a_fault_that_weights_hide_is_found",
    ),
    Elsewhere(
        "`RerouteReads` itself goes wrong",
        'the compiler, `verify="graph"`',
        "tests/passes/test_reroute.py::test_the_recurrence_check_finds_planted_faults",
    ),
)
COLLECTIVES = (
    Fault("a wait is dropped", "waits", "has 0 waits", faults.wait_dropped),
    Fault("a collective is waited for twice", "waits", "has 2 waits", faults.waited_twice),
    Fault(
        "a result is read before its wait", "waits", "while it is in flight", faults.read_in_flight
    ),
    Fault("an all-reduce is removed", "recurrence", "y2 is never computed", faults.reduce_dropped),
    Fault(
        "an all-reduce is removed on one rank",
        "order of collectives",
        "the ranks disagree",
        faults.reduce_dropped,
        on=1,
    ),
    Fault(
        "two launches change places on one rank",
        "order of collectives",
        "the ranks disagree",
        faults.collectives_swapped,
        on=1,
    ),
    Fault(
        "two launches change places on all ranks",
        "hidden",
        "hides nothing",
        faults.collectives_swapped,
    ),
    Fault("a sum is reduced twice", "recurrence", "y2 is never computed", faults.reduced_twice),
    Fault("what is reduced is halved", "recurrence", "y2 is never computed", faults.summand_halved),
    Fault(
        "the maximum is reduced, not the sum",
        "groups",
        "calls all_reduce over",
        faults.maximum_taken,
    ),
    Fault(
        "an all-reduce is over another group",
        "groups",
        "is over the group 'another'",
        faults.other_group("reduce"),
    ),
    Fault(
        "the all-reduce of a backward pass is over another group",
        "groups",
        "is over the group 'another'",
        faults.other_group("copy"),
    ),
    Fault(
        "an all-gather takes more ranks than there are",
        "groups",
        "is over 4 ranks, not 2",
        faults.gathered_from_more,
        net="decoder",
    ),
    Fault(
        "a bias is added on every rank",
        "recurrence",
        "the same vector is added",
        faults.bias_on_every_rank,
    ),
    Fault(
        "a bias is forgotten behind an all-reduce",
        "recurrence",
        "the same vector is added",
        faults.bias_forgotten,
    ),
    Fault(
        "a launch hides nothing: the next block needs its sum, times zero",
        "hidden",
        "hides nothing",
        faults.launch_waits_for_the_one_before,
    ),
)
FILES = (
    Fault(
        "a slice is off by one",
        "weights",
        "layers.1.up.weight has other values on rank 1",
        faults.of_a_rank("layers.1.up.weight", lambda t: t.roll(1, 0)),
        on=1,
    ),
    Fault(
        "a tensor is of another dtype",
        "weights",
        "layers.1.up.weight is [8, 8] float64 instead of [8, 8] float32 on rank 1",
        faults.of_a_rank("layers.1.up.weight", torch.Tensor.double),
        on=1,
    ),
    Fault(
        "a tensor is of another shape",
        "weights",
        "layers.1.up.weight is [7, 8] float32 instead of [8, 8] float32 on rank 1",
        faults.of_a_rank("layers.1.up.weight", lambda t: t[:-1].clone()),
        on=1,
    ),
    Fault(
        "a tensor holds a NaN",
        "weights",
        "layers.1.up.weight has other values on rank 1: 1 of 64, 1 of them NaN",
        faults.of_a_rank("layers.1.up.weight", faults.with_nan),
        on=1,
    ),
    Fault(
        "a tensor is missing",
        "weights",
        "layers.1.up.weight is missing on rank 1: it should be [8, 8] float32",
        faults.of_a_rank("layers.1.up.weight", lambda _: None),
        on=1,
    ),
    Fault(
        "a tensor is one too many",
        "weights",
        "layers.9.up.weight is unexpected on rank 1: [2] float32",
        faults.one_too_many,
        on=1,
    ),
    Fault(
        "a replicated tensor differs on one rank",
        "weights",
        "layers.1.norm.weight has other values on rank 1",
        faults.of_a_rank("layers.1.norm.weight", lambda t: t + 1e-7),
        on=1,
    ),
    Elsewhere(
        "the files of two ranks are exchanged",
        "`weights`",
        "tests/testing/test_faults.py::test_files_of_two_ranks_exchanged",
    ),
    Elsewhere(
        "each of those in a rank's file: file and tensor are named",
        "`weights`",
        "tests/testing/test_faults.py::test_a_tensor_of_a_file_is_named_with_its_file",
    ),
    Elsewhere(
        "the segments of a fused weight are swapped",
        "`weights`",
        "tests/testing/test_verify.py::test_faults_in_the_tensors_of_a_rank",
    ),
    Elsewhere(
        "a file is changed or cut short",
        "the compiler, by hash and size",
        "tests/frontends/test_hostile_files.py::test_changed_files_are_read_or_refused",
    ),
    Elsewhere(
        "a number of the manifest is changed",
        "the compiler, by the manifest's hash",
        "tests/testing/test_faults.py::test_a_changed_number_of_the_manifest",
    ),
    Elsewhere(
        "a number of the manifest is changed, hash and all",
        "the compiler, by the graph",
        "tests/testing/test_faults.py::test_a_changed_number_of_the_manifest",
    ),
    Elsewhere(
        "a directory of another number of ranks",
        "the compiler",
        "tests/testing/test_verify.py::test_folders_that_do_not_belong_together",
    ),
    Elsewhere(
        "a ladder of another model",
        "`inputs and outputs`",
        "tests/testing/test_verify.py::test_another_model_is_told_apart",
    ),
    Elsewhere(
        "a ladder of other layers than asked for",
        "`recurrence`",
        "tests/testing/test_verify.py::test_options_are_those_noted_in_the_files",
    ),
)
STATE = (
    Fault(
        "a cache is not written",
        "state",
        "layers.0.keys is off",
        faults.cache_not_written,
        net="decoder",
    ),
    Fault(
        "a cache is zeroed in the end",
        "state",
        "layers.1.keys is off",
        faults.changed_in_the_end("b_layers_1_keys", aten.zero_.default),
        net="decoder",
    ),
    Fault(
        "a cache is halved in the end",
        "state",
        "layers.1.values is off",
        faults.changed_in_the_end("b_layers_1_values", aten.mul_.Tensor, 0.5),
        net="decoder",
        ranks=1,
    ),
    Fault(
        "a cache is halved on one rank",
        "state",
        "rank 1",
        faults.changed_in_the_end("b_layers_1_values", aten.mul_.Tensor, 0.5),
        net="decoder",
        on=1,
    ),
    Fault(
        "keys are left in the cache of values",
        "state",
        "layers.0.values is off",
        faults.caches_exchanged,
        net="decoder",
    ),
    Fault(
        "an input is zeroed in place",
        "state",
        "input x is off",
        faults.changed_in_the_end("x", aten.zero_.default),
        ranks=1,
    ),
    Fault(
        "an input of whole numbers is zeroed in place",
        "state",
        "input ids has another form",
        faults.changed_in_the_end("ids", aten.zero_.default),
        net="decoder",
        ranks=1,
    ),
    Fault(
        "a weight is zeroed in place",
        "state",
        "layers.3.norm.weight",
        faults.changed_in_the_end("p_layers_3_norm_weight", aten.zero_.default),
    ),
)
SIZES = (
    Fault(
        "a fresh read from row 12 on",
        "values",
        "worst error",
        faults.from_position(12),
        net="rows",
        ranks=1,
    ),
    Fault(
        "a fresh read from row 12 on, on shards",
        "values",
        "worst error",
        faults.from_position(12),
        net="rows",
    ),
    Fault(
        "wrong from size 17 on",
        "values",
        "worst error",
        faults.at_size(operator.gt, 16),
        net="rows",
        ranks=1,
    ),
    Fault(
        "wrong at one size only, which stands in the graph",
        "values",
        "worst error",
        faults.at_size(operator.eq, 14),
        net="rows",
        ranks=1,
    ),
    Fault(
        "wrong at the least size only",
        "values",
        "worst error",
        faults.at_size(operator.lt, 2),
        net="rows",
        ranks=1,
    ),
    Fault(
        "wrong at the greatest size only",
        "values",
        "worst error",
        faults.at_size(operator.eq, 24),
        net="rows",
        ranks=1,
    ),
)
GRADIENTS = (
    Fault(
        "the all-reduce of a backward pass is dropped",
        "gradients",
        "layers.2.norm",
        faults.copy_dropped,
    ),
    Fault("a gradient is summed twice", "gradients", "layers.2.norm", faults.copied_twice),
    Fault("a branch is detached", "gradients", "layers.2.down", faults.branch_detached, ranks=1),
    Fault(
        "a branch is detached on one rank", "gradients", "on rank 1", faults.branch_detached, on=1
    ),
    Fault("the skip is detached", "gradients", "layers.1.", faults.skip_detached, ranks=1),
)
FLIGHT = wrappers.FLIGHT
EMITTED = (
    Emitted(
        "a wait is removed",
        "buf0 = NEW\nAR(buf0)\nreturn (arg0_1, )",
        wrappers.races,
        "launch without a wait",
    ),
    Emitted(
        "a wait comes late: a kernel reads the buffer",
        FLIGHT.format("cpp_fused_add_0(arg0_1, buf0, buf1)"),
        wrappers.races,
        "compute of buf0, in flight",
    ),
    Emitted(
        "a kernel writes a buffer in flight",
        FLIGHT.format("cpp_fused_add_0(arg0_1, arg1_1, buf0)"),
        wrappers.races,
        "compute of buf0, in flight",
    ),
    Emitted(
        "a buffer in flight is reused",
        FLIGHT.format("buf1 = buf0; del buf0  # reuse\n    buf0 = buf1"),
        wrappers.races,
        "reuse of buf0, in flight",
    ),
    Emitted(
        "a buffer in flight is freed",
        FLIGHT.format("buf1 = buf0; del buf0; del buf1; buf0 = NEW"),
        wrappers.races,
        "free of buf0, in flight",
    ),
    Emitted(
        "a buffer in flight is copied",
        FLIGHT.format("arg0_1.copy_(buf0, False)"),
        wrappers.races,
        "copy of buf0, in flight",
    ),
    Emitted(
        "a buffer in flight is launched again",
        FLIGHT.format("AR(buf0)"),
        wrappers.races,
        "launch of buf0, in flight",
    ),
    Emitted(
        "a buffer in flight is returned",
        "buf0 = NEW\nAR(buf0)\nreturn (buf0, )",
        wrappers.races,
        "return of buf0, in flight",
    ),
    Emitted(
        "a collective is waited for twice",
        "buf0 = NEW\nAR(buf0)\nWAIT(buf0)\nWAIT(buf0)\nreturn (buf0, )",
        wrappers.races,
        "second wait for buf0",
    ),
    Emitted(
        "a wait comes early, ahead of the next block",
        "buf0 = NEW\nAR(buf0)\nWAIT(buf0)\nbuf1 = NEW\n"
        "extern_kernels.mm(arg0_1, arg1_1, out=buf1)\nAR(buf1)\nWAIT(buf1)\nreturn (buf0, buf1)",
        wrappers.disorder,
        "wait_tensor.default(buf0)",
    ),
    Elsewhere(
        "one kernel waits for two all-reduces",
        '`verify="code"`',
        "tests/backends/test_emitted_order.py::test_fusion_that_waits_for_two_is_found",
    ),
    Elsewhere(
        "waits removed, late and early in real code",
        '`verify="code"`',
        "tests/ranks/test_emitted_races.py::test_faults_planted_in_real_code_are_found",
    ),
)
AGREEMENT = "tests/ranks/test_agreement.py"
RANKS = (
    Elsewhere(
        "ranks of another staleness, other blocks or layers",
        "the compiler, before it compiles",
        f"{AGREEMENT}::test_options_that_differ_are_an_error_on_all",
    ),
    Elsewhere(
        "ranks of another dtype or graph",
        "the compiler, before it compiles",
        f"{AGREEMENT}::test_parallelize_agrees_on_the_graph",
    ),
    Elsewhere(
        "a rank that never compiles",
        "the compiler, in the group's timeout",
        f"{AGREEMENT}::test_a_rank_that_never_compiles_is_an_error_not_a_hang",
    ),
    Elsewhere(
        "a pass fails on one rank",
        "the compiler, on all ranks",
        f"{AGREEMENT}::test_an_error_of_any_type_in_one_ranks_rewrite_is_raised_on_all",
    ),
    Elsewhere(
        "a lowering fails on one rank",
        "the compiler, on all ranks",
        f"{AGREEMENT}::test_an_error_of_one_rank_in_any_lowering_stops_all",
    ),
)
NOT_CATCHABLE = (
    NotCatchable(
        "the search for streams misses a block, or takes a wrong one",
        "`verify` asks the same search; `--expect-blocks` and the title say how many there are",
    ),
    NotCatchable(
        "an op computes something else than it should",
        "original, reference and candidate call the same kernels of torch",
    ),
    NotCatchable(
        "an error smaller than rounding",
        "sums of ranks are taken in another order, so the values differ by as much",
    ),
    NotCatchable(
        "a fault for certain tokens or values only",
        "inputs are random: `variants=` tries more of them",
    ),
    NotCatchable(
        "a fault at one size in the middle of a range that no number in the graph tells of",
        "the ends, some sizes between and those past such numbers are tried, not all",
    ),
    NotCatchable(
        "a fault at a size whose values do not fit into memory",
        "the check `sizes` says which were left out; `max_bytes=` allows more",
    ),
    NotCatchable(
        "ranks that hang, run out of memory or are slow", "all ranks run in one process, on the CPU"
    ),
    NotCatchable(
        "`load` is given a mesh of other processes",
        "files name no processes; the ranks agree on the graph alone",
    ),
)

SECTIONS: dict[str, Sequence[Any]] = {
    "graph": GRAPH,
    "collectives": COLLECTIVES,
    "files": FILES,
    "state after the call": STATE,
    "sizes": SIZES,
    "gradients": GRADIENTS,
    "emitted code": EMITTED,
    "ranks that disagree": RANKS,
    "not catchable": NOT_CATCHABLE,
}


def rows() -> Iterator[tuple[str, str, str]]:
    """The place, description and check of each fault."""
    for section, faults_of in SECTIONS.items():
        for fault in faults_of:
            yield section, fault.what, _named_by(fault)


def _named_by(fault: Any) -> str:
    if isinstance(fault, Fault):
        return f"`{fault.check}`"
    if isinstance(fault, Elsewhere):
        return fault.named_by
    return '`verify="code"`' if isinstance(fault, Emitted) else f"nothing: {fault.reason}"


START, END = "<!-- faults: helpers.fault_rows --write -->\n", "<!-- end of faults -->"


def table() -> str:
    lines = ["| in | planted fault | named by |", "|---|---|---|"]
    lines += [f"| {section} | {what} | {named_by} |" for section, what, named_by in rows()]
    return "\n".join(lines) + "\n"


def page_with(text: str, page: str) -> str:
    before, _, rest = page.partition(START)
    return f"{before}{START}{text}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/testing.md")
    if parser.parse_args().write:
        PAGE.write_text(page_with(table(), PAGE.read_text("utf-8")), "utf-8")
    else:
        sys.stdout.write(table())
