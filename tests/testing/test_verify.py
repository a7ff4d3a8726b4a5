"""`ladderize verify`: correct ladders of six families pass; command, files, options, dtypes.

Here faults are planted in families; test_faults.py plants them one by one in small models.
"""

import json
import warnings
from functools import cached_property

import pytest
import torch
from helpers import faults
from helpers.graphs import Residual
from torch.export import Dim, export
from typer.testing import CliRunner
from zoo.table import FAMILIES

import ladderize
from ladderize import LadderError
from ladderize.compat.archive import read_note, read_program
from ladderize.frontends.sharded.localize import localize
from ladderize.passes.reroute import RerouteReads
from ladderize.testing.verify.candidate import of_local
from ladderize.tools.cli import app

NAMED = {family.name: family for family in FAMILIES}
DEFAULT = ["llama", "gpt2", "resnet (basic layers)"]
DEEP = ["bert", "t5", "vit"]


def run(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, [str(arg) for arg in args])


class Files:
    """An exported family or small model, with files and shards over two ranks on demand."""

    def __init__(self, name, folder):
        torch.backends.mha.set_fastpath_enabled(False)
        family = NAMED.get(name)
        with torch.no_grad():
            if family is None:
                self.program = export(Residual(), (torch.randn(2, 8),), strict=False)
            else:
                self.program = export(family.build(), (), family.feed(), strict=False)
        self.folder = folder
        self.stream = faults.stream_of(self.program)

    @cached_property
    def original(self):
        torch.export.save(self.program, self.folder / "original.pt2")
        return self.folder / "original.pt2"

    @cached_property
    def ladder(self):
        """A file."""
        return self.rewritten("ladder.pt2")

    @cached_property
    def shards(self):
        """A directory."""
        return self.rewritten("shards", "--tp", 2)

    def rewritten(self, name, *how):
        done = run("rewrite", self.original, "--out", self.folder / name, *how)
        assert done.exit_code == 0, done.output
        return self.folder / name

    @cached_property
    def local(self):
        return localize(self.program, 2)

    def candidate(self):
        """The shards in memory, to plant faults in."""
        return of_local(self.program, self.local)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made = {}

    def files_of(name):
        if name not in made:
            made[name] = Files(name, tmp_path_factory.mktemp("written"))
        return made[name]

    return files_of


def verify(*args):
    return run("verify", *args)


def by_name(found):
    return {check.name: check for check in found.checks}


@pytest.mark.parametrize(
    "name", [*DEFAULT, *(pytest.param(name, marks=pytest.mark.deep) for name in DEEP)]
)
def test_right_ladders_pass(written, name):
    files = written(name)
    for rewritten in (ladderize.rewrite(files.program), files.candidate()):
        found = ladderize.verify(files.program, rewritten)
        assert found.ok, found
        assert f"{NAMED[name].blocks} blocks" in by_name(found)["recurrence"].found
        errors = [check.error for check in found.checks if check.name.startswith("values")]
        assert len(errors) >= 2 and max(errors) < 1e-5


def test_the_command_prints_the_checks(written):
    files = written("mlps")
    done = verify(files.original, files.shards, "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["ok"] and all(check["status"] == "ok" for check in printed["checks"])
    names = {check["name"] for check in printed["checks"]}
    assert {"weights", "waits", "recurrence", "order of collectives"} <= names


GRAPH_FAULTS = [
    ("llama", faults.left_fresh, "its branch reads x3, fresh, not x2"),
    ("gpt2", faults.two_blocks_early, "its branch reads x1, 2 blocks stale, not x2"),
    pytest.param(
        *("bert", faults.left_fresh, "its branch reads x3, fresh, not x2"), marks=pytest.mark.deep
    ),
    ("llama", faults.skip_rerouted, "its skip carries x1"),
    ("resnet (basic layers)", faults.stale_read_across_a_segment, "is never computed"),
    ("llama", faults.final_norm_reads_stale, "output 0 is computed from {y2}, not from {y3}"),
]


@pytest.mark.parametrize(("name", "fault", "says"), GRAPH_FAULTS)
def test_faults_in_a_graph(written, name, fault, says):
    files = written(name)
    ladder = ladderize.rewrite(files.program)
    index = faults.plant(ladder, files.stream, fault)
    found = ladderize.verify(files.program, ladder)
    check = by_name(found)["recurrence"]
    assert check.status == "failed"
    assert f"block {index} (" in check.where or f"block, {index} (" in check.where
    assert says in check.found
    assert f"{index} (" in found.summary()
    assert any("values" in check.name for check in found.failed)


def test_the_command_names_a_fault_of_a_file(written, tmp_path):
    files = written("mlps")
    program = read_program(files.ladder)
    index = faults.plant(program, files.stream, faults.left_fresh)
    torch.export.save(program, tmp_path / "faulty.pt2")
    done = verify(files.original, tmp_path / "faulty.pt2", "--json")
    assert done.exit_code == 1
    (check,) = (c for c in json.loads(done.stdout)["checks"] if c["name"] == "recurrence")
    assert (check["status"], check["found"]) == ("failed", "its branch reads x3, fresh, not x2")
    assert f"block {index} (" in check["where"]
    assert f"{index} (" in done.stderr.splitlines()[-1]


def test_a_bias_on_every_rank(written):
    files = written("gpt2")
    candidate = files.candidate()
    for part in candidate.parts:
        index = faults.bias_on_every_rank(part.gm.graph, files.stream)
    check = by_name(ladderize.verify(files.program, candidate))["recurrence"]
    assert check.status == "failed"
    assert f"block {index} (" in check.where
    assert "the same vector is added" in check.found


def test_collectives_in_another_order_on_one_rank(written, tmp_path):
    files = written("mlps")
    folder = faults.copy_folder(files.shards, tmp_path / "rank1")
    index = faults.plant_in_graph(folder, files.stream, faults.collectives_swapped)
    # Alone, on both ranks, the values are right; the launch that is moved is late.
    late = ladderize.verify(files.program, folder)
    assert [check.name for check in late.failed] == ["hidden"]
    check = by_name(ladderize.verify(files.program, [files.shards, folder]))["order of collectives"]
    assert check.status == "failed"
    assert f"block {index} (" in check.where
    assert "rank 0: reduce" in check.found and "rank 1: reduce" in check.found
    assert verify(files.original, files.shards, files.shards).exit_code == 0


@pytest.mark.parametrize(
    ("name", "fault"), [("llama", faults.slice_off_by_one), ("gpt2", faults.segments_swapped)]
)
def test_faults_in_the_tensors_of_a_rank(written, name, fault):
    files = written(name)
    candidate = files.candidate()
    index = fault(candidate.parts[1].tensors)
    found = ladderize.verify(files.program, candidate)
    check = by_name(found)["weights"]
    assert check.status == "failed"
    assert "has other values on rank 1" in check.found
    assert f"block {index} (" in check.where
    wrong = [check for check in found.checks if "values" in check.name]
    assert wrong and all(check.status == "failed" for check in wrong)
    assert all(f"block {index} (" in check.where for check in wrong)


def test_a_fault_that_weights_hide_is_found(written):
    """Branches scaled by nearly nothing: no number tells a fresh read from a stale one."""
    files = written("mlps")
    program = read_program(files.ladder)
    for name, tensor in program.state_dict.items():
        if name.endswith(("down.weight", "down.bias")):
            tensor.data.mul_(1e-9)
    quiet = read_program(files.original)
    quiet.state_dict.update(program.state_dict)
    assert ladderize.verify(quiet, program).ok
    faults.plant(program, files.stream, faults.left_fresh)
    found = ladderize.verify(quiet, program)
    assert [check.name for check in found.failed] == ["recurrence"]
    assert "block 3 (" in found.failed[0].where


def test_values_of_another_form_than_the_graph_says(written):
    files = written("llama")
    ladder = ladderize.rewrite(files.program)
    node = faults.node_in(ladder.graph, files.stream.blocks[1].outputs[0])
    node.meta["val"] = node.meta["val"].new_empty(2, 7, 31)
    found = ladderize.verify(files.program, ladder)
    assert [check.name for check in found.failed] == ["shapes"]
    assert "its graph says [2, 7, 31]" in found.failed[0].found
    assert "model.layers.0.mlp" in found.failed[0].where


# ---- what it holds a ladder to


def test_options_are_those_noted_in_the_files(written, tmp_path):
    files = written("mlps")
    out = tmp_path / "half.pt2"
    assert run("rewrite", files.original, "--out", out, "--layers", "last:2").exit_code == 0
    assert read_note(out) == {"layers": "last:2"}
    assert read_note(files.original) is None
    assert ladderize.verify(files.program, out).ok
    done = verify(files.original, out, "--layers", "all")
    assert done.exit_code == 1
    assert "its branch reads x1, fresh, not x0" in done.stdout
    assert "block 1 (layers.1, graphs.py" in done.stderr
    assert not ladderize.verify(files.program, files.ladder, staleness=2).ok


def test_a_standard_net_does_not_pass_for_a_ladder(written):
    files = written("llama")
    found = ladderize.verify(files.program, files.program)
    assert not found.ok
    assert "block 1 (" in found.failed[0].where
    assert ladderize.verify(files.program, files.program, staleness=0).ok


def test_it_does_not_ask_the_pass_that_it_checks(written, monkeypatch):
    """With a pass that refuses to run, a ladder made before is still verified."""
    files = written("gpt2")
    ladder = ladderize.rewrite(files.program)

    def refuse(*_):
        raise LadderError("no pass runs")

    monkeypatch.setattr(RerouteReads, "__call__", refuse)
    with pytest.raises(LadderError, match="no pass runs"):
        ladderize.rewrite(files.program)
    assert ladderize.verify(files.program, ladder).ok


def test_other_shapes_and_dtypes():
    family = NAMED["llama"]
    dims = {"input_ids": {0: Dim("batch", max=8), 1: Dim("length", max=32)}}
    program = export(family.build(), (), family.feed(), dynamic_shapes=dims)
    dtypes = [torch.float32, torch.float64, torch.bfloat16]
    found = ladderize.verify(program, ladderize.rewrite(program), dtypes=dtypes, variants=3)
    assert found.ok, found
    names = [check.name.split(", ") for check in found.checks if "values" in check.name]
    shapes = {dtype: [shape for _, each, shape in names if each == dtype] for _, dtype, _ in names}
    assert [*shapes] == ["float32", "float64", "bfloat16"]
    assert len(shapes["float64"]) == len(set(shapes["float64"])) == 3
    assert {"1x1", "8x32", *shapes["float64"]} < set(shapes["float32"])
    assert "input_ids.size(0): 1, " in by_name(found)["sizes"].found


def test_another_model_is_told_apart(written):
    found = ladderize.verify(written("llama").program, ladderize.rewrite(written("gpt2").program))
    assert [check.name for check in found.failed] == ["inputs and outputs"]


def test_other_inputs_end_it(written):
    resnet = written("resnet (basic layers)")
    found = ladderize.verify(written("llama").program, ladderize.rewrite(resnet.program))
    assert [check.name for check in found.checks] == ["inputs and outputs"]
    images = list(NAMED["resnet (basic layers)"].feed()["pixel_values"].shape)
    assert f"float32 {images}" in found.failed[0].found


def test_folders_that_do_not_belong_together(written, tmp_path):
    files = written("mlps")
    with pytest.raises(LadderError, match="3 directories are given"):
        ladderize.verify(files.program, [files.shards] * 3)
    with pytest.raises(LadderError, match=r"it has no manifest\.json"):
        ladderize.verify(files.program, tmp_path)


def test_half_precision_hides_no_fault():
    """Rounding of bfloat16 is as large as a wrong read: the recurrence is read in float32."""
    family = NAMED["llama"]
    model = family.build().to(torch.bfloat16)
    program = export(model, (), family.feed(), strict=False)
    ladder = ladderize.rewrite(program)
    found = ladderize.verify(program, ladder, dtypes=[torch.bfloat16, torch.float16])
    assert found.ok, found
    worst = [check.error for check in found.checks if check.name.startswith("values, bfloat16")]
    assert worst and max(worst) < 1e-1
    faults.plant(ladder, faults.stream_of(program), faults.two_blocks_early)
    found = ladderize.verify(program, ladder)
    assert found.failed[0].name == "recurrence"
    assert found.failed[0].found == "its branch reads x1, 2 blocks stale, not x2"
