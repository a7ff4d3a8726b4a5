"""Manipulated files are refused with one error, in bounded time and memory, or read."""

import gzip
import hashlib
import json
import random
import shutil
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.few_examples import FACTOR
from helpers.parallel_nets import make_ids, make_net
from safetensors.torch import save_file

from ladderize import LadderConfig, LadderError, rewrite
from ladderize.compat.archive import read_note, read_program
from ladderize.compat.json_files import read_json
from ladderize.frontends.sharded.checkpoint import open_checkpoint
from ladderize.frontends.sharded.directory import _hash_of
from ladderize.frontends.sharded.program_files import open_shards, rank_file, write_shards
from ladderize.tools.predict.timeline.trace import read_step

FILES = 40 * FACTOR  # of each of four kinds
WRONG = [
    *(None, True, -1, 0, 2**70, 1e308, "", "x", "../x", "__class__", "9**9**9", "\x00", "é" * 9),
    *([], {}, [[[]]], {"a": 1}, [0] * 50, 3 * 10**8),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A program, a directory of shards, a checkpoint with an index, and a trace."""
    folder = tmp_path_factory.mktemp("written")
    program = torch.export.export(make_net(layers=1), (make_ids(),), strict=False)
    torch.export.save(rewrite(program), folder / "ladder.pt2")
    write_shards(program, folder / "shards", 2, LadderConfig())
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    save_file({"a": torch.ones(2, 3)}, checkpoint / "one.safetensors")
    save_file({"b": torch.ones(4)}, checkpoint / "two.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    event = {"ph": "X", "name": "aten::mm", "ts": 1.0, "dur": 2.0, "tid": 1, "pid": 1}
    (folder / "trace.json").write_text(json.dumps({"traceEvents": [event, dict(event, ts=4.0)]}))
    return folder


def places(data, path=()):
    """Every place in JSON data."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def with_a_change(data, rng):
    """The data with one value, key or entry wrong, gone, surplus or twice."""
    *path, key = rng.choice(list(places(data)))
    inside = data
    for step in path:
        inside = inside[step]
    how = rng.randrange(4)
    if how == 0:
        del inside[key]
    elif how == 1 and isinstance(inside, dict):
        inside[rng.choice(["surplus", "", "name", "é"])] = rng.choice(WRONG)
    elif how == 2 and isinstance(inside, list):
        inside.append(inside[key])
    else:
        inside[key] = rng.choice(WRONG)
    return data


def with_other_bytes(data: bytes, rng) -> bytes:
    """Cut short, or with a few bytes changed, gone or surplus."""
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        changed[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(changed)


def outcome(read):
    """The error about a file; "" if it is read. Any other error fails the test."""
    try:
        read()
    except LadderError as error:
        return str(error)
    return ""


def rewritten_json(path: Path, rng) -> None:
    path.write_text(json.dumps(with_a_change(json.loads(path.read_text()), rng)))


def write_with_its_hash(path: Path, data) -> None:
    """A manifest with a valid hash, as written by someone who knows the format."""
    if isinstance(data, dict):
        data.pop("sha256", None)
        data["sha256"] = _hash_of(data)
    path.write_text(json.dumps(data))


def changed_manifest(folder: Path, rng):
    path = folder / "shards" / "manifest.json"
    write_with_its_hash(path, with_a_change(json.loads(path.read_text()), rng))
    shards = open_shards(folder / "shards")
    shards.source(0)


def with_graph(path: Path, folder: Path, change) -> Path:
    """The archive with another graph, and checksums that fit."""
    out = folder / "changed.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".json") and "models/" in name:
                data = json.dumps(change(json.loads(data))).encode()
            new.writestr(name, data)
    return out


def changed_graph(folder: Path, rng):
    """One value of the graph in the archive."""
    out = with_graph(folder / "ladder.pt2", folder, lambda data: with_a_change(data, rng))
    read_note(out)
    read_program(out)


READERS = {
    "ladder.pt2": (read_note, read_program),
    "shards": (lambda path: [open_shards(path).source(rank) for rank in (0, 1)],),
    "checkpoint": (open_checkpoint,),
    "trace.json": (lambda path: read_step(path, "ladder"),),
}


def changed_bytes(folder: Path, rng):
    files = [p for p in folder.rglob("*") if p.is_file()]
    path = rng.choice(files)
    path.write_bytes(with_other_bytes(path.read_bytes(), rng))
    name = path.relative_to(folder).parts[0]
    for read in READERS[name]:
        read(folder / name)


def changed_index_or_trace(folder: Path, rng):
    index = folder / "checkpoint" / "model.safetensors.index.json"
    trace = folder / "trace.json"
    rewritten_json(rng.choice([index, trace]), rng)
    open_checkpoint(folder / "checkpoint")
    read_step(trace, "ladder")


KINDS = [changed_manifest, changed_graph, changed_bytes, changed_index_or_trace]


@pytest.mark.parametrize("change", KINDS)
def test_changed_files_are_read_or_refused(written, tmp_path, change):
    refused = 0
    for seed in range(FILES):
        folder = tmp_path / str(seed)
        shutil.copytree(written, folder)
        text = outcome(partial(change, folder, random.Random(seed)))
        assert len(text) < 20_000, seed
        refused += bool(text)
        shutil.rmtree(folder)
    assert refused > FILES // 4  # the others are harmless: a line for people, an unused field


@pytest.mark.parametrize(
    "place", [(), ("module_call_graph",), ("module_call_graph", 0, "signature")]
)
def test_a_graph_of_other_types_is_refused(written, tmp_path, place):
    """The types are read before torch checks them."""

    def change(data):
        *path, last = ("graph_module", *place)
        inside = data
        for step in path:
            inside = inside[step]
        inside[last] = 3
        return data

    said = outcome(lambda: read_program(with_graph(written / "ladder.pt2", tmp_path, change)))
    assert "cannot read" in said


# ---- kinds that were read, or took gigabytes --------------------------------------------------


def manifest_with(written, tmp_path, **changes):
    shutil.copytree(written / "shards", tmp_path / "shards")
    path = tmp_path / "shards" / "manifest.json"
    write_with_its_hash(path, json.loads(path.read_text()) | changes)
    return outcome(lambda: open_shards(tmp_path / "shards"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_ranks": 3 * 10**8}, "num_ranks: Input should be less than or equal to 4096"),
        ({"num_ranks": 0}, "num_ranks: Input should be greater than or equal to 1"),
        ({"num_ranks": 3}, "3 ranks do not divide"),
        ({"surplus": 1}, "surplus: Extra inputs are not permitted"),
        ({"options": {"stalenes": "2"}}, "stalenes"),
        ({"options": {"staleness": "9"}}, "staleness"),
        ({"entries": [{}]}, r"entries.0.name: Field required"),
        (
            {"files": {"../graph.pt2": {"bytes": 1, "sha256": "0" * 64}}},
            "no file of this directory",
        ),
        ({"files": {}}, "graph.pt2 is not in the manifest"),
    ],
)
def test_each_field_of_a_manifest_has_a_type_and_bounds(written, tmp_path, changes, said):
    assert said in manifest_with(written, tmp_path, **changes)


def test_an_entry_stands_in_a_manifest_once(written, tmp_path):
    entries = json.loads((written / "shards" / "manifest.json").read_text())["entries"]
    assert "entries of one name" in manifest_with(written, tmp_path, entries=entries + entries[:1])


def test_a_tensor_that_does_not_fit_is_named(written, tmp_path):
    shards = open_shards(written / "shards")
    name, *_ = (entry.name for entry in shards.local.entries if entry.kind == "parameter")
    folder = shutil.copytree(written / "shards", tmp_path / "shards")
    tensors = shards.held(1)
    save_file(tensors | {name: tensors[name][..., :-1].clone()}, folder / rank_file(1, 2))
    said = json.loads((folder / "manifest.json").read_text())
    data = (folder / rank_file(1, 2)).read_bytes()
    said["files"][rank_file(1, 2)] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_with_its_hash(folder / "manifest.json", said)
    text = outcome(lambda: open_shards(folder).source(1))
    assert "The checkpoint does not fit the model, in 1 tensors" in text
    assert f"misshapen: {name} is " in text


def test_a_manifest_of_another_graph_is_refused(written, tmp_path):
    entries = json.loads((written / "shards" / "manifest.json").read_text())["entries"]
    entries[0]["name"] += ".other"
    said = manifest_with(written, tmp_path, entries=entries)
    assert "is read by the graph only" in said and "is in manifest.json only" in said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' stands in it twice"),
        (b"[" * 100_000, "too deep"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b"9" * 5_000, "cut short"),
        (b"\xff\xfe", "cut short"),
        (b"", "cut short"),
        (gzip.compress(b'{"a": 1}', mtime=0)[:-9], "cut short"),
    ],
    ids=["twice", "deep", "NaN", "long number", "no text", "empty", "cut gzip"],
)
def test_json_that_is_refused(tmp_path, data, said):
    (tmp_path / "file").write_bytes(data)
    assert said in outcome(lambda: read_json(tmp_path / "file", "manifest"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_json_that_is_too_large_takes_no_memory(tmp_path, pack):
    (tmp_path / "file").write_bytes(pack(b" " * 2**25))
    tracemalloc.start()
    said = outcome(lambda: read_json(tmp_path / "file", "trace", most_bytes=2**24))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "it has more than 16 MiB" in said
    assert most < 8 * 2**20


def test_an_archive_that_would_grow_is_not_unpacked(written, tmp_path):
    packed = tmp_path / "packed.pt2"
    with (
        zipfile.ZipFile(written / "ladder.pt2") as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "is compressed" in outcome(lambda: read_program(packed))
