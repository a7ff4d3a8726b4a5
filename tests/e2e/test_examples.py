"""The examples run as the README, or they themselves, show them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def printed(line: str) -> list[str]:
    """What a `torchrun` line prints."""
    command = [sys.executable, "-m", "torch.distributed.run", *line.split()[1:]]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_quickstart():
    line = "torchrun --standalone --nproc-per-node 2 examples/quickstart.py"
    assert f".venv/bin/{line}" in (ROOT / "README.md").read_text()
    sharded, standard = (float(text.split(":")[1].split()[0]) for text in printed(line))
    assert sharded <= 1e-4
    assert standard > 1e-3


@pytest.mark.parametrize("name", ["train_dtensor.py", "train_fsdp_tp.py"])
def test_training(name):
    """The command and the last line are those of its docstring."""
    text = (ROOT / "examples" / name).read_text()
    line = re.search(r"torchrun --standalone .*", text)[0]
    promised = re.search(r"to the unsharded eager ladder: .*", text)[0]
    found, *losses, last = printed(line)
    assert found == "blocks found: 4"
    learnt = [float(text.split("loss ")[1]) for text in losses]
    assert learnt[0] > 2.5  # log(16) = 2.8 is a guess among its tokens
    assert learnt[-1] < 0.1
    number = r"\d\.\de[+-]\d\d"
    assert re.sub(number, "", last) == re.sub(number, "", promised)
    ladder, standard = (float(each) for each in re.findall(number, last))
    assert ladder <= 1e-4
    assert standard > 1e-1


def test_hugging_face_tensor_parallel():
    text = (ROOT / "examples" / "hf_tensor_parallel.py").read_text()
    line = re.search(r"torchrun --standalone \S+ \d+ \S+", text)[0]
    found, last = printed(line)
    assert found == "blocks found: 4"
    number = re.search(r"eager ladder: (\S+), tokens/s: \d+ \(2 ranks, cpu\)", last)[1]
    assert float(number) <= 1e-4


def test_serving():
    text = (ROOT / "examples" / "serve_llama.py").read_text()
    line = re.search(r"torchrun --standalone .*", text)[0]
    assert line in (ROOT / "docs" / "parallelize.md").read_text()
    found, cache, *_, last = printed(line)
    assert found == "8 of 8 blocks converted"
    assert cache == "a layer's keys: [1, 2, 128, 8] on each of 2 ranks"  # of 4 heads
    assert last == "same tokens as one process"
