"""Each planted fault of the table is found by its check, and correct programs pass.

The models are traced and sharded once; a fault is planted in a copy, which lockstep runs.
"""

import ast
import json
from functools import cache

import pytest
import torch
from helpers import fault_rows, faults
from helpers.cached_decoder import EXAMPLE, Decoder
from helpers.fault_rows import Elsewhere, Emitted, Fault
from helpers.graphs import Residual
from torch.export import Dim, export

import ladderize
from ladderize import LadderError
from ladderize.frontends.sharded.localize import localize
from ladderize.frontends.sharded.program_files import write_shards
from ladderize.testing.verify.candidate import of_local, of_program

FAULTS = [fault for part in fault_rows.SECTIONS.values() for fault in part]


@cache
def traced(net):
    """A program, its stream, its ladder and its shards over two ranks; nobody edits them."""
    torch.manual_seed(0)
    n = Dim("n", min=1, max=16)
    if net == "mlps":
        program = export(Residual(), (torch.randn(2, 8),), strict=False)
    elif net == "rows":
        shapes = ({0: Dim("rows", min=1, max=24)},)
        program = export(Residual(), (torch.randn(5, 8),), dynamic_shapes=shapes, strict=False)
    else:
        program = export(Decoder(), EXAMPLE, dynamic_shapes=({1: n}, {0: n}), strict=False)
    return program, faults.stream_of(program), ladderize.rewrite(program), localize(program, 2)


def candidate_of(net, ranks):
    program, _, ladder, local = traced(net)
    return of_program(ladder) if ranks == 1 else of_local(program, local)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("net", ["mlps", "rows", "decoder"])
def test_what_the_faults_are_planted_in_is_right(net, ranks):
    found = ladderize.verify(traced(net)[0], candidate_of(net, ranks))
    assert found.ok, found


@pytest.mark.parametrize(
    "fault", [pytest.param(f, id=f.what) for f in FAULTS if isinstance(f, Fault)]
)
def test_a_planted_fault_is_named(fault):
    program, stream, *_ = traced(fault.net)
    candidate = candidate_of(fault.net, fault.ranks)
    index = 0
    for part in candidate.parts if fault.on is None else [candidate.parts[fault.on]]:
        if fault in fault_rows.FILES:
            fault.plant(part.tensors)
        else:
            index = fault.plant(part.gm.graph, stream)
            part.gm.graph.lint()
    found = ladderize.verify(program, candidate)
    failed = {check.name.partition(",")[0]: check for check in reversed(found.failed)}
    assert fault.check in failed, found
    assert fault.says in failed[fault.check].found
    where = failed[fault.check].where
    assert where if fault.check != "recurrence" else f"{index} (" in where


# ---- in files


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "shards"
    write_shards(traced("mlps")[0], folder, 2)
    return folder


@pytest.fixture
def copied(shards, tmp_path):
    return faults.copy_folder(shards, tmp_path / "shards")


def verify_files(folder):
    return ladderize.verify(traced("mlps")[0], folder)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.what) for f in fault_rows.FILES if isinstance(f, Fault)],
)
def test_a_tensor_of_a_file_is_named_with_its_file(copied, fault):
    faults.plant_in_tensors(copied, fault.on, fault.plant)
    check = verify_files(copied).failed[0]
    assert check.name == "weights"
    assert fault.says.partition(":")[0] in check.found
    assert "on rank 1, in rank-00001-of-00002.safetensors" in check.found


def test_files_of_two_ranks_exchanged(copied):
    assert verify_files(copied).ok
    one, other = sorted(copied.glob("*.safetensors"))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    faults.make_manifest_fit(copied)
    check = verify_files(copied).failed[0]
    assert check.name == "weights" and "has other values on rank 0" in check.found


def test_a_changed_number_of_the_manifest(copied):
    path = copied / "manifest.json"
    data = json.loads(path.read_text())
    data["entries"][0]["shape"][0] += 8
    path.write_text(json.dumps(data))
    with pytest.raises(LadderError, match=r"manifest\.json was changed"):
        verify_files(copied)
    faults.make_manifest_fit(copied)
    with pytest.raises(LadderError, match=r"has invalid fields|do not match"):
        verify_files(copied)


# ---- elsewhere


@pytest.mark.parametrize(
    "fault", [pytest.param(f, id=f.what) for f in FAULTS if isinstance(f, Emitted)]
)
def test_a_fault_in_emitted_code_is_found(fault):
    assert any(fault.says in text for text in fault.find(fault.body))


def test_the_others_are_planted_where_the_table_says():
    for fault in FAULTS:
        if isinstance(fault, Elsewhere):
            file, _, name = fault.test.partition("::")
            tree = ast.parse((fault_rows.ROOT / file).read_text("utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_table_of_the_page_is_that_of_the_tests():
    page = fault_rows.PAGE.read_text("utf-8")
    text = fault_rows.table()
    assert page == fault_rows.page_with(text, page), "fault_rows.py --write"
    assert text.count("\n") - 2 >= 45
    assert len({what for _, what, _ in fault_rows.rows()}) > 45
