"""`ladderize rewrite … --lowering tensorrt` with engines that are really built."""

import json
import re

import pytest
import torch
from laddered import MODELS
from torch.export import Dim, export
from typer.testing import CliRunner

from ladderize.backends.tensorrt.engines.plan_cache import decode_plan
from ladderize.tools.cli import app


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "llama.pt2"
    ids = torch.zeros(2, 16, dtype=torch.int64)
    dims = {"input_ids": {1: Dim("length", min=2, max=64)}}
    model = MODELS["llama"]().bfloat16().eval()
    torch.export.save(export(model, (), {"input_ids": ids}, dynamic_shapes=dims), path)
    return path


def rewrite(program, out, *options):
    how = [word for option in options for word in ("--lowering-option", option)]
    words = ["rewrite", str(program), "--out", str(out), "--tp", "2", "--lowering", "tensorrt"]
    return CliRunner().invoke(app, [*words, *how])


def test_a_directory_of_shards_has_its_engines(program, tmp_path):
    out = tmp_path / "shards"
    result = rewrite(program, out, "target=8.9")
    assert result.exit_code == 0, result.output
    # One for each of 8 blocks, the embedding and the end: see docs/design.md.
    num_islands, num_kinds = re.search(r"(\d+) islands of (\d+) kinds", result.output).groups()
    assert int(num_islands) <= 2 * 4 + 4
    assert int(num_kinds) <= 8
    plans = [decode_plan(path.read_bytes()) for path in (out / "engines").iterdir()]
    assert all(plan is not None and len(plan.engine) > 1000 for plan in plans)
    types = [layer.type for plan in plans for layer in plan.layers]
    assert types.count("MATRIX_MULTIPLY") >= 4
    known = json.loads((out / "manifest.json").read_text())["files"]
    assert sum(name.startswith("engines/") for name in known) == len(plans)


def test_a_target_that_is_unknown_is_refused(program, tmp_path):
    result = rewrite(program, tmp_path / "shards", "target=1.0")
    assert result.exit_code == 1
    assert "TensorRT cannot build these engines" in result.output
    assert not list(tmp_path.iterdir())
