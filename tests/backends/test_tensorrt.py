"""The TensorRT lowering as far as it goes without a GPU: what is refused, and, with PyTorch in the
place of the engines, the graph around them. The engines: tests/tensorrt.
"""

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from helpers.eager_ladders import llama_ladder, tiny_llama
from helpers.engines_stand_in import build_in_pytorch, engines_in_pytorch
from helpers.installed import install
from helpers.parallel_nets import eager_ladder, make_ids, make_net
from helpers.ranks import Ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.export import Dim, export
from typer.testing import CliRunner

import ladderize
from ladderize import LadderError
from ladderize.backends.tensorrt import lower
from ladderize.backends.tensorrt.engines.packages import require_packages
from ladderize.tools.cli import app

MINOR = ".".join(torch.__version__.split(".")[:2])
IDS = torch.arange(14).reshape(2, 7) % 60


def of_any_length():
    ids = IDS.clone()
    torch._dynamo.mark_dynamic(ids, 1)
    return ids


@pytest.fixture(scope="module")
def ranks():
    with Ranks(2) as ranks:
        yield ranks


def compiled(model, **options):
    torch._dynamo.reset()
    return torch.compile(
        model, backend="ladderize", fullgraph=True, options={"lowering": "tensorrt", **options}
    )


# ---- without TensorRT


def test_tensorrt_is_asked_for_and_not_there():
    with pytest.raises(LadderError) as error, torch.no_grad():
        compiled(tiny_llama(1))(IDS)
    assert "torch_tensorrt is not installed" in str(error.value)
    assert f"pip install 'torch-tensorrt=={MINOR}.*'" in str(error.value)
    assert f"'torch-tensorrt-rtx=={MINOR}.*'" in str(error.value)
    assert "lowering='inductor'" in str(error.value)


@pytest.mark.parametrize(
    ("packages", "says"),
    [
        ({"torch-tensorrt": "2.1.0"}, f"torch-tensorrt 2.1.0 is not for torch {MINOR}"),
        (
            {"torch-tensorrt": f"{MINOR}.0", "torch-tensorrt-rtx": f"{MINOR}.0"},
            "are both installed",
        ),
        ({"torch-tensorrt": f"{MINOR}.1"}, "OSError: libnvinfer.so.10: cannot open"),
    ],
)
def test_a_broken_tensorrt_is_named(tmp_path, monkeypatch, packages, says):
    for package, version in packages.items():
        install(tmp_path, package, version)
    fault = "raise OSError('libnvinfer.so.10: cannot open shared object file')"
    (tmp_path / "torch_tensorrt.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    with pytest.raises(LadderError) as error:
        require_packages()
    assert says in str(error.value)
    assert f"torch-tensorrt=={MINOR}.*" in str(error.value)


def test_nothing_of_it_is_imported_unasked():
    assert not {"torch_tensorrt", "tensorrt"} & set(sys.modules)


def test_mistaken_options_are_all_told():
    with pytest.raises(LadderError) as error:
        ladderize.LadderConfig(
            lowering="tensorrt",
            lowering_options={"weights": "striped", "target": "new", "sizes": {"x[0]": (4, 2, 1)}},
            mode="max-autotune",
            verify="code",
        )
    for part in ("'striped'", "did you mean 'stripped'", "target='new'", "x[0]", "mode=", "verify"):
        assert part in str(error.value)


# ---- the graph around the engines


def test_it_is_the_ladder_and_equal_layers_are_of_one_kind():
    model = tiny_llama(2)
    with torch.no_grad(), engines_in_pytorch() as made:
        found = compiled(model)(IDS)
        expected = llama_ladder(model, IDS, range(4))
    torch.testing.assert_close(found.logits, expected, atol=2e-6, rtol=2e-6)
    assert [built.report.num_islands for built in made] == [1]  # there are no collectives
    engines = ladderize.last_report().graphs[0].engines
    assert (engines.num_islands, engines.num_built) == (1, 1)
    assert "1 island of 1 kind, 1 TensorRT plan for 8.9" in str(ladderize.last_report())


def test_weights_are_read_when_they_change_and_only_then():
    model = tiny_llama(1)
    with torch.no_grad(), engines_in_pytorch() as made:
        step = compiled(model)
        step(IDS)
        step(IDS)
        assert made[0].bound == {"island_0": 1}
        model.model.layers[0].mlp.down_proj.weight.mul_(2)  # in place
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 3)  # another tensor
        found = step(IDS)
        expected = llama_ladder(model, IDS, range(2))
    torch.testing.assert_close(found.logits, expected, atol=5e-6, rtol=2e-6)
    assert made[-1].bound["island_0"] in (1, 2)  # Dynamo may trace anew for a new parameter


def test_gradients_are_refused():
    with engines_in_pytorch(), pytest.raises(LadderError) as error:
        compiled(tiny_llama(1))(IDS)
    assert "TensorRT does not compute gradients" in str(error.value)
    assert "torch.no_grad()" in str(error.value)


def test_a_size_without_bound_is_refused_by_its_name():
    with torch.no_grad(), engines_in_pytorch(), pytest.raises(LadderError) as error:
        compiled(make_net(1))(ids=of_any_length())
    assert "ids[1]" in str(error.value)
    assert '"sizes"' in str(error.value)


@pytest.mark.deep
def test_one_program_for_all_lengths():
    model = tiny_llama(1)
    with torch.no_grad(), engines_in_pytorch() as made:
        step = compiled(model, lowering_options={"sizes": {"*": (2, 7, 64)}})
        for length in (7, 5, 12):
            ids = of_any_length() if length == 7 else torch.arange(2 * length).reshape(2, length)
            expected = llama_ladder(model, ids, range(2))
            torch.testing.assert_close(step(ids).logits, expected, atol=2e-6, rtol=2e-6)
    assert len(made) == 1


# ---- ranks


def run_sharded(layers: int) -> dict[str, object]:
    """The largest difference from the unsharded eager ladder, and the order of ops."""
    net, ids = make_net(layers), make_ids()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.no_grad(), engines_in_pytorch() as made:
        found = compiled(net, mesh=mesh)(ids)
        off = float((found - eager_ladder(net, ids)).abs().max())
    (built,) = made
    report = built.report
    return {
        "off": off,
        "islands": report.num_islands,
        "kinds": report.num_kinds,
        "shared": sorted(len(plan.islands) for plan in report.plans),
        "weights": built.num_weights,
    }


def test_two_ranks_run_the_ladder_with_equal_layers_of_one_kind(ranks):
    for found in ranks.run(run_sharded, 3):
        assert found["off"] < 5e-6
        # The attentions in the middle share a kind, and the MLPs do.
        assert found["kinds"] < found["islands"]
        assert max(found["shared"]) >= 2
        assert found["weights"] > 3 * 6


def build_on_rank_0_only(*args):
    if dist.get_rank():
        raise LadderError("TensorRT cannot build these engines on this machine:")
    return build_in_pytorch(*args)


def run_where_one_rank_cannot_build() -> str:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with engines_in_pytorch(), torch.no_grad():
        with_fault = patch.object(lower, "build_islands", build_on_rank_0_only)
        with with_fault, pytest.raises(LadderError) as error:
            compiled(make_net(1), mesh=mesh)(make_ids())
    return str(error.value)


def test_an_engine_that_one_rank_cannot_build_is_an_error_on_all(ranks):
    for said in ranks.run(run_where_one_rank_cannot_build):
        assert "TensorRT cannot build these engines on this machine" in said


# ---- ahead of time


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A small decoder of any length, as a file."""
    path = tmp_path_factory.mktemp("program") / "decoder.pt2"
    dims = {"ids": {1: Dim("length", max=32)}}
    torch.export.save(export(make_net(1), (make_ids(),), dynamic_shapes=dims), path)
    return path


def rewrite(program: Path, out: Path, *how: str):
    words = ["rewrite", str(program), "--out", str(out), "--lowering", "tensorrt", *how]
    return CliRunner().invoke(app, words)


@pytest.fixture(scope="module")
def written(program, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "shards"
    with engines_in_pytorch():
        result = rewrite(program, out, "--tp", "2", "--lowering-option", "target=8.9")
    assert result.exit_code == 0, result.output
    assert "kinds" in result.output and "plans for 8.9" in result.output
    return out


def test_engines_are_files_of_the_directory_that_its_manifest_knows(written):
    manifest = json.loads((written / "manifest.json").read_text())
    plans = sorted(path.name for path in (written / "engines").iterdir())
    known = [name.partition("/")[2] for name in manifest["files"] if name.startswith("engines/")]
    assert plans == sorted(known)
    assert len(plans) > 2
    assert manifest["engines"] == {"target": "8.9"}


def run_loaded(folder: Path) -> float:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    net, worst = make_net(1), 0.0
    with engines_in_pytorch() as made:
        shard = ladderize.load(folder, mesh)
        assert made[0].report.num_built == 0
        with torch.no_grad():
            for length in (7, 12):
                ids = make_ids(length=length)
                worst = max(worst, float((shard(ids) - eager_ladder(net, ids)).abs().max()))
        with pytest.raises(LadderError, match="TensorRT does not compute gradients"):
            shard(make_ids())
    return worst


def test_two_ranks_run_the_engines_that_were_written(ranks, written):
    assert max(ranks.run(run_loaded, written)) < 5e-6


def test_what_was_written_can_be_verified(written, program):
    result = CliRunner().invoke(app, ["verify", str(program), str(written)])
    assert result.exit_code == 0, result.output


def load_fails(folder: Path) -> str:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with engines_in_pytorch(), pytest.raises(LadderError) as error:
        ladderize.load(folder, mesh)
    return str(error.value)


def test_an_engine_that_is_gone_or_changed_is_an_error_on_all_ranks(ranks, written, tmp_path):
    changed = shutil.copytree(written, tmp_path / "changed")
    first, second, *_ = sorted((changed / "engines").iterdir())
    first.unlink()
    second.write_bytes(b"other")
    for said in ranks.run(load_fails, changed):
        assert f"{first.name} is missing" in said
        assert f"{second.name} has 5 bytes" in said


def test_nothing_is_left_of_a_directory_whose_engines_cannot_be_built(program, tmp_path):
    result = rewrite(program, tmp_path / "shards", "--tp", "2")
    assert result.exit_code == 1
    assert "torch_tensorrt is not installed" in result.output
    assert not list(tmp_path.iterdir())


def test_engines_need_a_directory_of_shards(program, tmp_path):
    result = rewrite(program, tmp_path / "ladder.pt2")
    assert result.exit_code == 1
    assert "give --tp and --out" in result.output
