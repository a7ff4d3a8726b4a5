"""The examples run as the README shows them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_quickstart():
    line = "torchrun --standalone --nproc-per-node 2 examples/quickstart.py"
    assert f".venv/bin/{line}" in (ROOT / "README.md").read_text()
    command = [sys.executable, "-m", "torch.distributed.run", *line.split()[1:]]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    sharded, standard = (float(text.split(":")[1].split()[0]) for text in ran.stdout.splitlines())
    assert sharded <= 1e-4
    assert standard > 1e-3
