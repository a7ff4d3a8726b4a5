"""`ladderize rewrite … --tp N` and `ladderize.load`: atomic, checked by hash, never executed."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
import torch.distributed as dist
from helpers.ranks import mesh
from helpers.reads import BODY
from helpers.sharded import MODELS
from torch.distributed.device_mesh import init_device_mesh
from torch.export import Dim, export
from torch.testing._internal.distributed.fake_pg import FakeStore
from typer.testing import CliRunner

import ladderize
from ladderize import LadderError
from ladderize.compat.archive import read_program
from ladderize.frontends.sharded import program_files
from ladderize.frontends.sharded.program_files import write_shards
from ladderize.testing import eager_ladder
from ladderize.tools.cli import app


def inputs(batch=2, length=6):
    return {"input_ids": torch.arange(batch * length).reshape(batch, length) % 60}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A small Llama of any batch and length, as a file."""
    path = tmp_path_factory.mktemp("program") / "llama.pt2"
    dims = {"input_ids": {0: Dim("batch", max=8), 1: Dim("length", max=32)}}
    torch.export.save(export(MODELS["llama"](), (), inputs(), dynamic_shapes=dims), path)
    return path


@pytest.fixture(scope="module")
def written(program, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "shards"
    result = CliRunner().invoke(app, ["rewrite", str(program), "--out", str(out), "--tp", "2"])
    assert result.exit_code == 0, result.output
    assert "4 blocks in 1 stream, 3 read stale" in result.output
    assert "on each of 2 ranks" in result.output
    return out


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written, tmp_path / "shards")


# ---- what is written, and what it computes


def test_one_graph_a_file_for_each_rank_and_a_manifest(written):
    assert sorted(path.name for path in written.iterdir()) == [
        "graph.pt2",
        "manifest.json",
        "rank-00000-of-00002.safetensors",
        "rank-00001-of-00002.safetensors",
    ]
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["num_ranks"] == 2
    assert set(manifest["files"]) == {p.name for p in written.iterdir()} - {"manifest.json"}
    assert any("sharded on dim 0" in line for line in manifest["plan"]["lines"])
    whole = sum(p.numel() * 4 for p in MODELS["llama"]().parameters())
    for rank in range(2):
        size = (written / f"rank-0000{rank}-of-00002.safetensors").stat().st_size
        assert size < 0.62 * whole
    assert (written / "graph.pt2").stat().st_size < 2**20  # no weights


def loaded(folder):
    shard = ladderize.load(folder, mesh())
    model = MODELS["llama"]()
    worst = 0.0
    for shape in [(2, 6), (3, 9)]:
        with eager_ladder(model, BODY["llama"]):
            expected = model(**inputs(*shape))[0]
        found = shard(**inputs(*shape))[0]
        worst = max(worst, (found - expected).abs().max().item())
    expected.sin().sum().backward()
    found.sin().sum().backward()
    name = "layers.1.mlp.down_proj.weight"
    part = model.get_parameter(name).grad.chunk(2, 1)[dist.get_rank()]
    return worst, (shard.get_parameter(name).grad - part).abs().max().item()


def test_two_ranks_load_what_was_written(two_ranks, written):
    for error, gradient in two_ranks.run(loaded, written):
        assert error <= 1e-4
        assert gradient <= 1e-4


def test_options_are_the_fields_of_the_configuration(program, tmp_path):
    out = tmp_path / "half"
    how = ["--tp", "2", "--layers", "last:1", "--expect-blocks", "4", "--no-shard-vocabulary"]
    result = CliRunner().invoke(app, ["rewrite", str(program), "--out", str(out), *how])
    assert result.exit_code == 0, result.output
    manifest = json.loads((out / "manifest.json").read_text())
    options = {"layers": "last:1", "expect_blocks": "4", "shard_vocabulary": "False"}
    assert manifest["options"] == options
    assert not any("embedding" in line for line in manifest["plan"]["lines"])
    assert manifest["plan"]["lines"][0] == "2 of 4 blocks read stale"


def test_without_tp_a_program_comes_out(program, tmp_path):
    out = tmp_path / "ladder.pt2"
    result = CliRunner().invoke(app, ["rewrite", str(program), "--out", str(out)])
    assert result.exit_code == 0, result.output
    model = MODELS["llama"]()
    with eager_ladder(model, BODY["llama"]), torch.no_grad():
        expected = model(**inputs(3, 9))[0]
        found = torch.export.load(out).module()(**inputs(3, 9))[0]
    assert (found - expected).abs().max() <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["ladder.pt2"]


# ---- nothing half-written


def test_what_exists_is_not_overwritten(program, written):
    before = {path.name: path.stat().st_mtime_ns for path in written.iterdir()}
    how = ["--out", str(written), "--tp", "2"]
    result = CliRunner().invoke(app, ["rewrite", str(program), *how])
    assert result.exit_code == 1
    assert "exists already" in result.output
    assert before == {path.name: path.stat().st_mtime_ns for path in written.iterdir()}


def test_a_failure_on_the_way_leaves_nothing(program, tmp_path, monkeypatch):
    saved = []

    def fail_at_the_second(_parts, path, _metadata):
        saved.append(path)
        if len(saved) == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(program_files, "save_file", fail_at_the_second)
    with pytest.raises(LadderError, match=r"out cannot be written: no space left on device\."):
        write_shards(read_program(program), tmp_path / "out", 2)
    assert len(saved) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_leaves_nothing(program, tmp_path):
    how = ["--out", str(tmp_path / "out"), "--tp", "2", "--expect-blocks", "5"]
    result = CliRunner().invoke(app, ["rewrite", str(program), *how])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


# ---- what does not load


def refusal(folder):
    try:
        ladderize.load(folder, mesh())
    except LadderError as error:
        return str(error)
    return "no error"


def refusal_of_one(folder, num_ranks=2):
    """What rank 0 says, whom no other rank keeps from loading."""
    dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    try:
        ladderize.load(folder, init_device_mesh("cpu", (num_ranks,)))
    except LadderError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return "no error"


def test_another_number_of_ranks(written):
    text = refusal_of_one(written, 4)
    assert "written for 2 ranks, the mesh has 4" in text
    assert "--tp 4" in text


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "graph changed": (lambda d: flip(d / "graph.pt2"), "graph.pt2 was changed"),
    "graph cut": (lambda d: cut(d / "graph.pt2"), "graph.pt2 has"),
    "graph gone": (lambda d: (d / "graph.pt2").unlink(), "graph.pt2 is missing"),
    "manifest changed": (
        lambda d: (d / "manifest.json").write_text(
            (d / "manifest.json").read_text().replace('"num_ranks": 2', '"num_ranks":  2')
        ),
        "no error",  # white space is no change
    ),
    "plan changed": (
        lambda d: (d / "manifest.json").write_text(
            (d / "manifest.json").read_text().replace("sharded on dim 0", "sharded on dim 1")
        ),
        "manifest.json was changed",
    ),
    "manifest cut": (lambda d: cut(d / "manifest.json"), "is no manifest, or is cut short"),
    "manifest gone": (lambda d: (d / "manifest.json").unlink(), "no manifest.json"),
    "later format": (
        lambda d: (d / "manifest.json").write_text(
            (d / "manifest.json").read_text().replace('"format_version": 1', '"format_version": 9')
        ),
        "of format ladderize-shards 9",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_changed_directory(copied, damage):
    do, expected = DAMAGE[damage]
    do(copied)
    assert expected in refusal_of_one(copied)


def test_a_changed_file_of_one_rank_stops_all(two_ranks, copied):
    flip(copied / "rank-00001-of-00002.safetensors")
    for text in two_ranks.run(refusal, copied, timeout=60):
        assert "rank-00001-of-00002.safetensors was changed" in text


# ---- archives that are not what they seem


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def repack(source, target, change):
    """A copy of an archive; `change` maps a member's name and bytes to new bytes, or None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def in_graph(old, new):
    def change(name, data):
        return data.replace(old, new, 1) if name.endswith("model.json") else data

    return change


def code_of(path):
    """What makes a directory at `path` when it is evaluated."""
    return f"__import__('os').mkdir('{path}')"


def strange_archives(tmp_path, program):
    trap = tmp_path / "trap"
    pickled = tmp_path / "pickled.pt2"
    torch.save({"a": Payload(trap)}, pickled)
    yield "a pickle in disguise", pickled, "0 exported programs"
    inside = pickle.dumps(Payload(trap))
    yield (
        "a pickle as example inputs",
        repack(program, tmp_path / "1.pt2", lambda n, d: inside if "sample_inputs" in n else d),
        "cannot read",
    )
    with_object = repack(program, tmp_path / "2.pt2", lambda _, d: d)
    with zipfile.ZipFile(with_object, "a") as archive:
        archive.writestr("llama/data/constants/custom_obj_0", inside)
    yield "an object among the constants", with_object, "holds an object"
    target = in_graph(
        b'"target": "torch.ops.aten.embedding.default"', b'"target": "torch.os.system"'
    )
    yield "a function", repack(program, tmp_path / "3.pt2", target), "it calls torch.os.system"
    with zipfile.ZipFile(program) as archive:
        (graph,) = (n for n in archive.namelist() if n.endswith("model.json"))
        size = archive.read(graph).split(b'"expr_str": "')[1].split(b'"')[0]
    code = in_graph(b'"expr_str": "' + size, b'"expr_str": "' + code_of(trap).encode())
    yield "code as a size", repack(program, tmp_path / "4.pt2", code), "a size is"
    yield "no archive", tmp_path / "5.pt2", "is no .pt2 archive"
    yield "half of one", tmp_path / "6.pt2", "is it cut short?"
    yield "nothing", tmp_path / "7.pt2", "There is no model called"
    yield "a directory", tmp_path, "is a directory"


def test_no_archive_runs_code(tmp_path, program):
    (tmp_path / "5.pt2").write_bytes(b"")
    (tmp_path / "6.pt2").write_bytes(program.read_bytes()[:-1000])
    out = tmp_path / "out"
    for name, path, expected in strange_archives(tmp_path, program):
        result = CliRunner().invoke(app, ["rewrite", str(path), "--out", str(out), "--tp", "2"])
        assert result.exit_code == 1, name
        assert expected in result.output, (name, result.output)
        assert "Traceback" not in result.output
        assert not out.exists()
        assert not (tmp_path / "trap").exists(), name


def test_the_trap_springs_where_nothing_is_checked(tmp_path):
    """The payload of the test above is a real one."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "trap")))
    assert (tmp_path / "trap").exists()
    eval(code_of(tmp_path / "trap2"))
    assert (tmp_path / "trap2").exists()
