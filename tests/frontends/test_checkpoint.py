"""Opening a checkpoint: every fault in one error, before a value is read; only slices are read."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ladderize import LadderError
from ladderize.frontends.sharded.checkpoint import StateDict, match, open_checkpoint
from ladderize.frontends.sharded.manifest import EntryRecord
from ladderize.frontends.sharded.materialize import read_entries
from ladderize.frontends.sharded.state import StateEntry
from ladderize.sharding.placement import Shard

CPU = torch.device("cpu")
TENSORS = {
    "a": torch.arange(24.0).reshape(8, 3),
    "b": torch.arange(12.0).reshape(3, 4),
    "c": torch.ones(2),
}


def entry(name, shape, placement=None, **more):
    placed = {"placement": placement} if placement else {}
    return StateEntry(name, "parameter", shape, torch.float32, **placed, **more)


ENTRIES = [
    entry("a", (8, 3), Shard(0, (4, 4))),
    entry("b", (3, 4), Shard(1, (4,))),
    entry("c", (2,)),
]


def save(folder, files, index=True):
    for file, names in files.items():
        save_file({name: TENSORS[name] for name in names}, folder / file)
    if index:
        weight_map = {name: file for file, names in files.items() for name in names}
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


TWO = {"one.safetensors": ["a"], "two.safetensors": ["b", "c"]}


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_slices(tmp_path, rank, index):
    source = open_checkpoint(save(tmp_path, TWO, index))
    parts = read_entries(ENTRIES, source, match(ENTRIES, source), rank, 2, CPU)
    a, b = TENSORS["a"], TENSORS["b"]
    first = 2 * rank
    assert torch.equal(parts["a"], torch.cat([a[first : first + 2], a[4 + first : 6 + first]]))
    assert torch.equal(parts["b"], b[:, first : first + 2])
    assert torch.equal(parts["c"], TENSORS["c"])
    assert all(part.is_contiguous() for part in parts.values())


def test_one_file(tmp_path):
    save_file(TENSORS, tmp_path / "all.safetensors")
    source = open_checkpoint(tmp_path / "all.safetensors")
    assert set(match(ENTRIES, source)) == {"a", "b", "c"}


def test_files_that_the_index_does_not_name_are_not_read(tmp_path):
    save(tmp_path, TWO)
    save_file({"a": torch.zeros(1)}, tmp_path / "older.safetensors")
    assert open_checkpoint(tmp_path).forms()["a"].shape == (8, 3)


def test_values_become_the_models_dtype(tmp_path):
    save_file(
        {name: t.to(torch.bfloat16) for name, t in TENSORS.items()}, tmp_path / "x.safetensors"
    )
    source = open_checkpoint(tmp_path)
    parts = read_entries(ENTRIES, source, match(ENTRIES, source), 0, 2, CPU)
    assert {part.dtype for part in parts.values()} == {torch.float32}


def test_a_tied_tensor_under_either_name():
    tied = entry("a", (8, 3), aliases=("head",))
    for name in ("a", "head"):
        assert match([tied], StateDict({name: TENSORS["a"]})) == {"a": name}
    both = StateDict({"a": TENSORS["a"], "head": TENSORS["a"]})
    assert match([tied], both) == {"a": "a"}


def test_what_is_not_persistent_need_not_be_there():
    cache = entry("cache", (2,), is_persistent=False)
    assert match([cache], StateDict({})) == {}


def faults(folder):
    with pytest.raises(LadderError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def test_every_fault_of_the_files_is_listed(tmp_path):
    save(tmp_path, TWO)
    (tmp_path / "one.safetensors").write_bytes((tmp_path / "one.safetensors").read_bytes()[:40])
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"] |= {"d": "two.safetensors", "e": "three.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    text = faults(tmp_path)
    assert "one.safetensors: " in text
    assert "three.safetensors: " in text
    assert "d is not in two.safetensors" in text


def test_a_name_in_two_files(tmp_path):
    save(tmp_path, {"one.safetensors": ["a", "c"], "two.safetensors": ["b", "c"]}, index=False)
    assert "c is in one.safetensors and in two.safetensors" in faults(tmp_path)


def test_no_files(tmp_path):
    assert "no *.safetensors file" in faults(tmp_path)
    assert "There is no checkpoint" in faults(tmp_path / "nowhere")


def test_two_indices(tmp_path):
    save(tmp_path, TWO)
    (tmp_path / "other.safetensors.index.json").write_text("{}")
    assert "several index files" in faults(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', "{"])
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "index of safetensors files" in faults(tmp_path)


@pytest.mark.parametrize(
    ("whole", "rows"), [((), [2, 3, 5, 7]), ((1,), [2, 3, 4, 5, 7]), ((1, 2), [2, 3, 4, 5, 6, 7])]
)
def test_three_chunks_are_read_one_behind_the_other(whole, rows):
    fused = entry("qkv", (8, 3), Shard(0, (4, 2, 2), whole))
    assert torch.equal(fused.read(TENSORS["a"], 1, 2, CPU), TENSORS["a"][rows])


def test_entries_are_data():
    for each in (
        *ENTRIES,
        entry("q", (8,), Shard(0, (4, 2, 2), whole=(1, 2))),
        entry("x", (4,), is_persistent=False, aliases=("y",), requires_grad=True),
    ):
        assert EntryRecord(**json.loads(EntryRecord.of(each).model_dump_json())).entry() == each
