"""Imports of the command line: mistakes are refused without importing torch."""

import json
import subprocess
import sys

from ladderize.tools.sources.model_names import shipped_names

MISTAKES = (
    ["--help"],
    ["--version"],
    ["explain", "--help"],
    ["explain", "--no-such-flag", "hf:llama"],
    ["explain", "nowhere.pt2"],
    ["explain", "hf:nowhere"],
    ["explain", "no_such_module:net"],
    ["explain", "hf:llama", "--layers", "bogus"],
    ["rewrite", "hf:nowhere", "--out", "out.pt2"],
    ["rewrite", "hf:llama"],
    ["verify", "nowhere.pt2", "out.pt2"],
    ["plan", "hf:llama,layers=none"],
    ["plot", "nowhere.pt2", "--out", "out.html"],
    ["bench", "nowhere.pt2"],
    ["sensitivity", "nowhere"],
    ["heal", "nowhere", "--out", "healed"],
    ["evaluate", "nowhere", "healed"],
)
PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from ladderize.tools.cli import app
codes = []
with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
    for arguments in json.loads(sys.argv[1]):
        try:
            app(arguments)
        except SystemExit as ended:
            codes.append(ended.code)
print(json.dumps([codes, sorted(sys.modules)]))
"""


def test_mistakes_are_refused_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(MISTAKES)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    codes, modules = json.loads(done.stdout)
    assert codes == [0, 0, 0, 2, *[1] * 5, 2, *[1] * 7]
    heavy = {"torch", "transformers", "sympy", "networkx", "numpy", "matplotlib", "scipy"}
    assert not heavy.intersection(modules)
    assert len(modules) < 700  # 500 on Python 3.11


def test_explain_imports_no_pictures(tmp_path):
    """A report is printed without the packages of plots and of models of transformers."""
    (tmp_path / "tower.py").write_text(
        "import torch\n"
        "class Layer(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return x + super().forward(x)\n"
        "def make():\n"
        "    parts = torch.nn.Linear(4, 8), Layer(8, 8), Layer(8, 8), torch.nn.Linear(8, 4)\n"
        "    return torch.nn.Sequential(*parts), (torch.ones(2, 4),), {}\n"
    )
    command = [sys.executable, "-c", PROGRAM, json.dumps([["explain", "tower:make"]])]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path
    )
    codes, modules = json.loads(done.stdout)
    assert codes == [0]
    assert not {"matplotlib", "scipy", "transformers"}.intersection(modules)


def test_importing_ladderize_imports_no_torch():
    program = "import sys, ladderize; assert 'torch' not in sys.modules, len(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_there_are_shipped_names():
    assert {"llama", "llama-8b", "llama-70b", "qwen3", "mixtral", "gpt2", "bert", "vit"} <= {
        *shipped_names()
    }
