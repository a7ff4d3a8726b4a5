"""`ladderize VERB MODEL`: three ways to name a model, and errors for bad names."""

import json
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.traced_once import traced_once
from torch import nn
from torch.export import export
from typer.testing import CliRunner

from ladderize.tools.cli import app

LADDERIZE = (sys.executable, "-c", "from ladderize.tools.cli import main; main()")
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
FACTORY = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))

def net():
    return nn.Sequential(*[Layer() for _ in range(3)]).eval(), (torch.randn(4, 8),)

def nothing():
    return 3

def broken():
    raise RuntimeError("no such weights")
"""


@pytest.fixture(scope="module", autouse=True)
def models_are_traced_once():
    with traced_once():
        yield


def run(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def llama(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    return f"hf:{path}"


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A module in the folder that the command runs in; the process forgets it afterwards."""
    (tmp_path / "my_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_nets", None)
    yield "my_nets"
    sys.modules.pop("my_nets", None)


# ---- models by name


def test_rewrite_and_verify_a_configuration(llama, tmp_path):
    """Its random weights are the same every time, so that the file is of the same model."""
    out = tmp_path / "ladder.pt2"
    assert run("rewrite", llama, "--out", out, "--dynamic").exit_code == 0
    done = run("verify", llama, out, "--json", "--memory", 1)
    assert done.exit_code == 0, done.output
    checks = json.loads(done.stdout)["checks"]
    shapes = {c["name"].split(", ")[2] for c in checks if c["name"].startswith("values")}
    assert len(shapes) > 3  # any batch and length
    (sizes,) = (c["found"] for c in checks if c["name"] == "sizes")
    assert "of 2 to any, the others take more than 1 MiB; input_ids.size(1): " in sizes


def test_a_folder_with_weights_is_that_model(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**{k: LLAMA[k] for k in LLAMA if k != "architectures"}))
    model.save_pretrained(tmp_path / "llama")
    (tmp_path / "random").mkdir()
    config = (tmp_path / "llama" / "config.json").read_text()
    (tmp_path / "random" / "config.json").write_text(config)
    out = tmp_path / "ladder.pt2"
    assert run("rewrite", f"hf:{tmp_path / 'llama'}", "--out", out).exit_code == 0
    assert torch.export.load(out).state_dict["lm_head.weight"].equal(model.lm_head.weight)
    assert run("verify", f"hf:{tmp_path / 'llama'}", out).exit_code == 0
    done = run("verify", f"hf:{tmp_path / 'random'}", out)
    assert done.exit_code == 1
    assert "weights" in done.stderr and "has other values" in done.stdout


@pytest.mark.parametrize(
    ("config", "blocks"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"], "num_hidden_layers": 2}, 4),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "num_layers": 2},
            10,
        ),
        ({"model_type": "vit", "architectures": ["ViTModel"], "num_hidden_layers": 2}, 4),
        ({"model_type": "resnet", "architectures": ["ResNetModel"], "depths": [3, 3, 2, 2]}, 6),
        ({"model_type": "gpt2", "num_hidden_layers": 3}, 6),  # the causal LM
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_inputs_are_made_for_a_configuration(tmp_path, config, blocks):
    """No memory is taken for weights: these are of their full size."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    done = run("explain", f"hf:{path}", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    found = [stream["blocks"] for graph in report["graphs"] for stream in graph["streams"]]
    assert sum(map(len, found)) == blocks


def test_a_configuration_names_its_dtype(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"dtype": "bfloat16"}))
    blocks = json.loads(run("explain", f"hf:{path}", "--json").stdout)["graphs"][0]["streams"]
    assert blocks[0]["blocks"][0]["reduce_bytes"] == 2 * 2 * 32 * 32  # batch, length, hidden size


def test_a_factory(factory, tmp_path):
    done = run("explain", f"{factory}:net")
    assert done.exit_code == 0, done.output
    assert "3 blocks in 1 stream, 2 would read stale" in done.stdout
    out = tmp_path / "net.pt2"
    assert run("rewrite", f"{factory}:net", "--out", out, "--dynamic").exit_code == 0
    done = run("verify", f"{factory}:net", out, "--memory", 1)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("nothing", r"my_nets:nothing returned \(int\). What to do: let it return"),
        ("broken", r"RuntimeError: no such weights \(\S+my_nets\.py:\d+\)"),
        ("missing", r"AttributeError: module 'my_nets' has no attribute 'missing'"),
    ],
)
def test_a_factory_that_is_none(factory, function, reason):
    done = run("explain", f"{factory}:{function}")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert re.search(reason, done.stderr)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nowhere.pt2", "There is no model called nowhere.pt2"),
        ("hf:nowhere", "nowhere: no such file, folder or shipped configuration"),
        ("no_such_module:net", "Python finds no module 'no_such_module' here"),
    ],
)
def test_models_that_are_not_there(text, reason):
    done = run("explain", text)
    assert done.exit_code == 1
    assert reason in done.stderr and len(done.stderr.splitlines()) == 1


def test_configurations_that_are_none(tmp_path):
    path = tmp_path / "config.json"
    for content in ("{", "[]", "{}", '{"model_type": "no-such-type"}'):
        path.write_text(content)
        done = run("explain", f"hf:{path}")
        assert done.exit_code == 1, content
        assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    path.write_text('{"model_type": "vit"}')
    assert "does not say which model it is of" in run("explain", f"hf:{path}").stderr
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    path.write_text(json.dumps(LLAMA))
    done = run("rewrite", f"hf:{tmp_path}", "--out", tmp_path / "out.pt2")
    assert done.exit_code == 1 and "are pickles (pytorch_model.bin)" in done.stderr


# ---- bad files


class Evil:
    def __reduce__(self):
        return (os.system, (f"touch {Path.cwd() / 'executed'}",))


def sound(path):
    layers = [nn.Linear(8, 8) for _ in range(3)]

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    torch.export.save(export(Residual(), (torch.randn(2, 8),)), path)


def truncated(path):
    sound(path)
    path.write_bytes(path.read_bytes()[:-4000])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("not a program\n")


def pickled(path):
    path.write_bytes(pickle.dumps(Evil()))


def pickled_by_torch(path):
    torch.save({"model": Evil()}, path)


def changed(path, change):
    """A valid archive with each content replaced by `change(name, content)`."""
    sound(path)
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in entries:
            archive.writestr(info.filename, change(info.filename, content))


def another_version(path):
    def change(name, content):
        if not re.search(r"models/\w+\.json$", name):
            return content
        data = json.loads(content)
        data["schema_version"] = {"major": 999, "minor": 1}
        return json.dumps(data)

    changed(path, change)


def pickle_in_disguise(path):
    def change(name, content):
        is_weight = "/data/weights/" in name and not name.endswith(".json")
        return pickle.dumps(Evil()) if is_weight else content

    changed(path, change)


def not_residual(path):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    torch.export.save(export(net, (torch.randn(2, 8),)), path)


def folder(path):
    path.mkdir()


BAD = [
    truncated, empty, text, pickled, pickled_by_torch, another_version, pickle_in_disguise,
    not_residual, folder,
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_a_bad_file_is_refused_in_one_line(bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt2"
    bad(path)
    before = sorted(tmp_path.rglob("*"))
    commands = [
        ("rewrite", path, "--out", tmp_path / "out.pt2"),
        ("rewrite", path, "--out", tmp_path / "out", "--tp", 2),
        ("verify", path, path),
        ("explain", path),
    ]
    for command in commands:
        done = run(*command)
        assert done.exit_code == 1, (command, done.output)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith(f"ladderize {command[0]}: ")
        assert "Traceback" not in done.output and "unexpected" not in done.stderr
        assert sorted(tmp_path.rglob("*")) == before  # nothing written, nothing executed


def test_the_sound_file_is_not_refused(tmp_path):
    """The valid file that the bad ones are made from."""
    sound(tmp_path / "sound.pt2")
    assert run("explain", tmp_path / "sound.pt2").exit_code == 0


# ---- writing


def test_a_dry_run_writes_nothing(llama, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = run("rewrite", llama, "--dry-run", "--out", tmp_path / "out.pt2")
    assert done.exit_code == 0
    assert "+y2 = x2 + h2(x1)" in done.stdout and "nothing was written" in done.stdout
    sharded = json.loads(run("rewrite", llama, "--dry-run", "--tp", 2, "--json").stdout)
    assert sharded["written"] is None and len(sharded["diff"]) == 3
    assert any("sharded on dim 0" in line for line in sharded["plan"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "how",
    [
        pytest.param((), id="file", marks=pytest.mark.deep),
        pytest.param(("--tp", 2), id="folder"),
    ],
)
def test_force_overwrites_what_ladderize_wrote(llama, tmp_path, how):
    out = tmp_path / "out"
    assert run("rewrite", llama, "--out", out, *how).exit_code == 0
    again = ("rewrite", llama, "--out", out, *how, "--layers", "last:1")
    done = run(*again)
    assert done.exit_code == 1 and "exists already" in done.stderr
    assert run(*again, "--force").exit_code == 0
    assert run("verify", llama, out, "--layers", "last:1").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "out"]


def test_force_spares_folders_of_others(llama, tmp_path):
    precious = tmp_path / "precious" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    done = run("rewrite", llama, "--out", precious.parent, "--tp", 2, "--force")
    assert done.exit_code == 1
    assert "did not write" in done.stderr
    assert precious.read_text() == "years of work"


def test_plot(llama, tmp_path):
    for name in ("plot.html", "plot.svg"):
        done = run("plot", llama, "--out", tmp_path / name, "--perfetto", tmp_path / f"{name}.json")
        assert done.exit_code == 0, done.output
    page = (tmp_path / "plot.html").read_text()
    assert "model.layers.1.mlp" in page and "must be trained or healed" in page
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
    events = json.loads((tmp_path / "plot.svg.json").read_text())["traceEvents"]
    assert {"standard", "ladder"} <= {e["args"].get("name") for e in events if "args" in e}
    done = run("plot", llama, "--out", tmp_path / "plot.svg")
    assert done.exit_code == 1 and "exists already" in done.stderr
    assert run("plot", llama, "--out", tmp_path / "plot.svg", "--force").exit_code == 0
    assert "use .html, .svg or .png" in run("plot", llama, "--out", tmp_path / "plot.gif").stderr


# ---- answers


def test_refusals_are_data_with_json(llama):
    done = run("rewrite", llama, "--dry-run", "--expect-blocks", 5, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert not found["ok"] and "5 blocks were expected" in found["error"]["summary"]
    assert len(found["error"]["reasons"]) == 4
    assert "5 blocks were expected" in done.stderr


def test_explain_says_why_not(tmp_path):
    not_residual(tmp_path / "mlp.pt2")
    done = run("explain", tmp_path / "mlp.pt2")
    assert done.exit_code == 1
    assert "No residual block was found" in done.stdout + done.stderr


def test_explain_how_it_is_sharded(llama):
    done = run("explain", llama, "--tp", 2)
    assert done.exit_code == 0
    assert "parameters to be sharded over 2 ranks" in done.stdout
    assert run("explain", llama, "--tp", 5).exit_code == 1  # nothing divides
    dense = run("rewrite", llama, "--tp", 2, "--experts", "expert", "--dry-run")
    assert dense.exit_code == 1
    assert "No experts can be placed whole on 2 ranks" in dense.output


@pytest.mark.parametrize(
    "args",
    [
        ("rewrite", "model.pt2"),  # --out is missing
        ("rewrite", "model.pt2", "--out", "x", "--tp", "1"),
        ("verify", "model.pt2"),
        ("verify", "model.pt2", "x.pt2", "--dtype", "int8"),
        ("explain",),
        ("no-such-verb",),
    ],
)
def test_usage(args):
    done = run(*args)
    assert done.exit_code == 2
    assert "Usage" in done.stderr and not done.stdout


def test_lists_of_layers(llama):
    done = run("explain", llama, "--blocks", "[1, 3]")
    assert re.search(r"x1 → x0.*\n.*x2  .*\n.*x3 → x2", done.stdout)


def test_versions_and_completion():
    """Without torch, which takes seconds to import."""
    script = "import sys; from ladderize.tools.cli import main\ntry: main()\nfinally: "
    script += "assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run(
        [sys.executable, "-c", script, "--version"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ladderize ")
    assert f"torch {torch.__version__}" in lines
    assert any(line.startswith("TensorRT ") for line in lines)
    # What the shell asks for at `ladderize re<Tab>`.
    asked = {
        "_LADDERIZE_COMPLETE": "complete_bash",
        "COMP_WORDS": "ladderize re",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from ladderize.tools.cli import app; app(prog_name='ladderize')"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["rewrite"]


def test_help_names_every_verb():
    done = subprocess.run([*LADDERIZE, "--help"], capture_output=True, text=True, check=True)
    for verb in ("explain", "rewrite", "verify", "plan", "plot", "demo", "doctor"):
        assert re.search(rf"│ {verb} ", done.stdout)
        assert run(verb, "--help").exit_code == 0
