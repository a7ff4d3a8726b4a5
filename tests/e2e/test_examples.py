"""The examples run as shown in the README or in their docstrings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.programs import run_program

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


# What a rank's Python runs first: Inductor as the tests use it, without C++ unless they are deep.
PREPARED = """
import os
if "RANK" in os.environ:
    from helpers.inductor import prepare_inductor
    prepare_inductor()
"""


def printed_by_torchrun(line: str, folder: Path) -> list[str]:
    """The output of a `torchrun` line; `folder` is empty."""
    (folder / "sitecustomize.py").write_text(PREPARED)
    paths = [str(folder), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *line.split()[1:]],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    assert "sitecustomize" not in ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.deep
def test_ranks_of_two_machines():
    """`bench/multi_node.sh` runs it on two of them."""
    lines = run_program(
        EXAMPLES / "multi_node.py", ["--machines", "2"], ranks=4, lowering="eager"
    ).splitlines()
    ranks = [re.search(r"ranks ([\d ]+)", line)[1] for line in lines[:3]]
    assert ranks == ["0 1", "0 2", "0 1 2 3"]
    assert lines[3] == "another option on the last machine: refused on all 4 ranks"
    assert any("+staleness = 2" in line for line in lines[4:])


def printed(line: str, lowering: str = "eager") -> list[str]:
    """The same from forked ranks, with another lowering in place of Inductor."""
    found = re.fullmatch(r"torchrun --standalone --nproc-per-node (\d) examples/(\S+)", line)
    assert found, line
    text = run_program(EXAMPLES / found[2], ranks=int(found[1]), lowering=lowering)
    return text.splitlines()


QUICKSTART = "torchrun --standalone --nproc-per-node 2 examples/quickstart.py"


@pytest.mark.deep
def test_quickstart_as_it_stands(tmp_path):
    """Started by torchrun, compiled by Inductor: a leg of `.ci/run`."""
    assert f".venv/bin/{QUICKSTART}" in (ROOT / "README.md").read_text()
    lines = printed_by_torchrun(QUICKSTART, tmp_path)
    sharded, standard = (float(text.split(":")[1].split()[0]) for text in lines)
    assert sharded <= 1e-4
    assert standard > 1e-3


def asked(name: str) -> str:
    """The command in the docstring of an example."""
    return re.search(r"torchrun --standalone \S+ \d \S+", (EXAMPLES / name).read_text())[0]


@pytest.mark.deep
@pytest.mark.parametrize("name", ["train_dtensor.py", "train_fsdp_tp.py"])
def test_training(name):
    """The command and the last line are those of its docstring."""
    check_training(name, printed(asked(name), "aot_eager"))  # 81 steps of DTensors


def check_training(name: str, lines: list[str]) -> None:
    promised = re.search(r"to the unsharded eager ladder: .*", (EXAMPLES / name).read_text())[0]
    found, *losses, last = lines
    assert found == "blocks found: 4"
    learnt = [float(text.split("loss ")[1]) for text in losses]
    assert learnt[0] > 2.5  # log(16) = 2.8 is a guess among its tokens
    assert learnt[-1] < 0.1
    number = r"\d\.\de[+-]\d\d"
    assert re.sub(number, "", last) == re.sub(number, "", promised)
    ladder, standard = (float(each) for each in re.findall(number, last))
    assert ladder <= 1e-4
    assert standard > 1e-1


@pytest.mark.deep
def test_hugging_face_tensor_parallel():
    check_hugging_face(printed(asked("hf_tensor_parallel.py")))


def check_hugging_face(lines: list[str]) -> None:
    found, last = lines
    assert found == "blocks found: 4"
    number = re.search(r"eager ladder: (\S+), tokens/s: \d+ \(2 ranks, cpu\)", last)[1]
    assert float(number) <= 1e-4


@pytest.mark.deep
def test_serving():
    """A leg of `.ci/run` too."""
    line = asked("serve_llama.py")
    assert line in (ROOT / "docs" / "parallelize.md").read_text()
    check_serving(printed(line))


def check_serving(lines: list[str]) -> None:
    found, cache, *_, last = lines
    assert found == "7 of 8 blocks read stale"
    assert cache == "a layer's keys: [1, 2, 128, 8] on each of 2 ranks"  # of 4 heads
    assert last == "same tokens as one process"


@pytest.mark.deep
@pytest.mark.parametrize("name", ["train_dtensor.py", "train_fsdp_tp.py"])
def test_training_through_inductor(name, tmp_path):
    check_training(name, printed_by_torchrun(asked(name), tmp_path))


@pytest.mark.deep
def test_hugging_face_tensor_parallel_through_inductor(tmp_path):
    check_hugging_face(printed_by_torchrun(asked("hf_tensor_parallel.py"), tmp_path))
