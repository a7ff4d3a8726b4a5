"""Every command in a `sh` block, and every `python bench/…` in the text, is run or held to a test.

COMMANDS says how, by what a line looks like; a line that looks like none of them fails.
`ladderize …` lines are run by `test_docs_ranks.py`, those of the tutorial by `test_tutorial.py`.
"""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import test_demo
import test_docs_ranks
import test_examples
from helpers.pages import PAGES, ROOT, Block, blocks, commands, is_walked, of_kind
from helpers.programs import run_program

from ladderize.config.options import LadderConfig

INSTALL = (
    "python3 -m venv .venv && .venv/bin/pip install --no-compile -c constraints.txt -e '.[{}]'"
)
# Small arguments for the measurements that are quick with them; the others show their help, which
# must have every option that the pages give.
BENCH = {
    "bench/calibrate.py": "--help",
    "bench/call_time.py": "--help",
    "bench/compare.py": "--help",
    "bench/compile_time.py": "--help",
    "bench/explain_time.py": "--here --layers 2",
    "bench/gpu_stand_in.py": "--help",
    "bench/gpu_values.py": "--help",
    "bench/load_memory.py": "--help",
    "bench/normed_heads.py": "--help",
    "bench/plan_70b.py": "--help",
    "bench/quality/from_scratch.py": "--help",
    "bench/quality/healed_curves.py": "--help",
    "bench/quality/held_out_curve.py": "--help",
    "bench/quality/real_model.py": "--help",
    "bench/run.py": "--help",
    "bench/sharded_families.py": "--help",
    "bench/sequence_parallel.py": "--layers 1 --ranks 2",
    "bench/slow_link.py": "--help",
    "bench/start_up.py": "--help",
    "bench/vllm_speed.py": "--help",
}
# Shell scripts that the pages name, and why the suite does not run them.
NOT_RUN = {
    "bench/gpu_first.sh": "tests/tools/test_gpu_first.py does",
    "bench/multi_node.sh": "as netns.sh; test_examples.py runs its example",
    "bench/netns.sh": "makes network namespaces: needs root and iproute2",
}


def installs(_: Block, line: str, __: Path) -> None:
    """`.ci/run` runs the line with the extra `test`; the others differ in the extra alone."""
    extra = re.search(r"\.\[(\w+)\]", line)[1]
    head, *after = line.split(INSTALL.format(extra))
    assert not head, "an installation that .ci/run does not run"
    assert "readme_command.py test" in (ROOT / ".ci" / "run").read_text()
    assert INSTALL.format("test") in (ROOT / "README.md").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in extras["optional-dependencies"]
    then = "".join(after).removeprefix(" && ").replace(".venv/bin/", "")
    assert then in {"", "pytest", "ladderize demo"}
    if then == "ladderize demo":
        assert "demo OK" in Path(test_demo.__file__).read_text()


def is_an_example(block: Block, line: str, folder: Path) -> None:
    """Of `examples/`: `test_examples.py` runs it. Of the page: saved and run here."""
    line = line.replace(".venv/bin/", "")
    program = shlex.split(line)[-1]
    if (ROOT / program).is_file():
        text = Path(test_examples.__file__).read_text()
        asked = (ROOT / program).read_text()
        assert line in text or (line in asked and Path(program).name in text)
        return
    (saved,) = (b for b in blocks(block.page) if b.file == program)
    (folder / program).write_text(saved.code)
    ranks = re.fullmatch(r"torchrun --standalone --nproc-per-node (\d) \S+", line)
    assert ranks, line
    found = run_program(folder / program, ranks=int(ranks[1]), folder=folder, lowering="aot_eager")
    assert found.strip() == block.printed.strip()


def is_a_test(_: Block, line: str, __: Path) -> None:
    """The suite has these files, folders or single tests, and runs them."""
    words = shlex.split(line.replace(".venv/bin/", "").replace(" -n 0", ""))[1:]
    options = {word for word in words if word.startswith("-")}
    assert options <= {"--deep"}
    for path, _, test in (word.partition("::") for word in words if word not in options):
        assert (ROOT / path).exists()
        assert not test or f"\ndef {test}(" in (ROOT / path).read_text()


def plants_mutants(_: Block, line: str, __: Path) -> None:
    """One of the table, or all of them."""
    program, *options = shlex.split(line)[1:]
    assert program == "tests/mutants/run.py"
    if options[:1] == ["--only"]:
        table = (ROOT / "tests" / "mutants" / "mutants.py").read_text()
        assert f'"{options[1]}"' in table
    else:
        assert options in ([], ["--check"])


def sets_hooks(_: Block, __: str, ___: Path) -> None:
    """Would write into .git: the extra brings the tool, and its configuration is there."""
    assert "pre-commit" in (ROOT / "pyproject.toml").read_text()
    assert "hooks:" in (ROOT / ".pre-commit-config.yaml").read_text()


def is_run_with_the_fragments(block: Block, line: str, _: Path) -> None:
    """Its output too is compared there."""
    elsewhere = test_docs_ranks.TRIED_ELSEWHERE
    assert line in elsewhere or (block, line) in test_docs_ranks.ladderize_lines()


def serves(_: Block, line: str, __: Path) -> None:
    """With such options, by the example's script in the environment that has vLLM."""
    tested = (ROOT / "tests" / "integrations" / "vllm" / "test_vllm.py").read_text()
    command, model, folder, *rest = shlex.split(line)
    given = dict(zip(rest[::2], map(json.loads, rest[1::2]), strict=True))
    assert (command, model) == ("vllm", "serve")
    assert folder in FOLDERS
    assert "vllm serve" in (ROOT / "examples" / "vllm_serve.sh").read_text()
    assert "vllm_serve.sh" in tested
    assert given.keys() <= {"--additional-config", "--compilation-config"}
    LadderConfig.from_options(given.get("--additional-config", {}).get("ladderize"))
    compilation = json.loads(re.search(r"^LADDER = (.*)$", tested, re.MULTILINE)[1])
    assert given.get("--compilation-config", compilation) == compilation


def serves_by_transformers(_: Block, line: str, __: Path) -> None:
    """With these very options; where the packages of its server are."""
    words = shlex.split(line)
    options = {word for word in words if word.startswith("--")}
    assert words[2:4] == ["ladderize.integrations.transformers", "serve"]
    assert words[4] in FOLDERS
    assert options <= set(re.findall(r'"(--[\w-]+)"', SERVER.read_text() + SERVER_TEST.read_text()))


def is_run_with_the_server(block: Block, line: str, _: Path) -> None:
    """Its output too is compared there."""
    assert "ran.stdout in PAGE.read_text()" in SERVER_TEST.read_text()
    assert line.split()[1] in SERVER_TEST.read_text()
    assert block.page == "docs/transformers.md"


FOLDERS = {"DIR", "healed"}  # of the reader; the tutorial has healed one
SERVER = ROOT / "examples" / "transformers_serve.py"
SERVER_TEST = ROOT / "tests" / "integrations" / "transformers" / "test_serve.py"


def is_of_several_machines(_: Block, line: str, __: Path) -> None:
    """As in its program, which runs without a second machine."""
    assert line in (ROOT / "examples" / "multi_node.py").read_text()


def trains(block: Block, line: str, _: Path) -> None:
    """In the environment that has torchtitan, where its output is also compared."""
    tested = ROOT / "tests" / "integrations" / "torchtitan" / "test_torchtitan.py"
    assert f'PAGE = "{block.page}"' in tested.read_text()
    assert "torchtitan" in line


OUTPUT_IS_COMPARED = (is_an_example, is_run_with_the_fragments, is_run_with_the_server, trains)
COMMANDS = {
    r"python3 -m venv .*": installs,
    r"(\.venv/bin/)?torchrun (?!.*torchtitan|--nnodes).*": is_an_example,
    r"torchrun .*torchtitan.*": trains,
    r"torchrun --nnodes .*": is_of_several_machines,
    r"\.venv/bin/pytest( .*)?": is_a_test,
    r"\.venv/bin/python tests/mutants/.*": plants_mutants,
    r"\.venv/bin/pre-commit install": sets_hooks,
    r"ladderize .*": is_run_with_the_fragments,
    r"vllm serve .*": serves,
    r"python -m ladderize\.integrations\.transformers serve .*": serves_by_transformers,
    r"python examples/transformers_serve\.py": is_run_with_the_server,
}
LINES = [
    (block, line)
    for block in of_kind("sh")
    for line in commands(block)
    if not is_walked(block, line)
]


# Those that take long: an emulated link in real time, a measurement.
LONG = ("emulated.py", "bench/sequence_parallel.py")


def case(name: str, *values: object) -> object:
    return pytest.param(*values, id=name, marks=[pytest.mark.deep] * name.endswith(LONG))


@pytest.mark.parametrize(
    ("block", "line"), [case(f"{block.page}: {line}", block, line) for block, line in LINES]
)
def test_commands(block, line, tmp_path):
    checks = [check for form, check in COMMANDS.items() if re.fullmatch(form, line)]
    assert len(checks) == 1, "COMMANDS does not say how this line is run"
    assert not block.printed or checks[0] in OUTPUT_IS_COMPARED
    checks[0](block, line, tmp_path)


def benches() -> set[str]:
    """Commands with which the reader measures."""
    text = "".join((ROOT / page).read_text() for page in PAGES)
    return set(re.findall(r"python (bench/[\w/]+\.py[^`\n]*)", text))


@pytest.mark.parametrize("script", [case(script, script) for script in sorted(BENCH)])
def test_measurements(script, tmp_path):
    told = [line for line in benches() if line.split()[0] == script]
    assert told, "a measurement that no page names"
    printed = run_program(ROOT / script, shlex.split(BENCH[script]), folder=tmp_path)
    assert printed.strip()
    if BENCH[script] == "--help":
        options = {word for line in told for word in line.split() if word.startswith("--")}
        assert [option for option in options if option not in printed] == []


def test_every_measurement_is_run():
    assert {line.split()[0] for line in benches()} == set(BENCH)


def test_shell_scripts_that_are_not_run():
    text = "".join((ROOT / page).read_text() for page in PAGES)
    assert set(re.findall(r"bench/\w+\.sh", text)) == set(NOT_RUN)
    for script in NOT_RUN:
        subprocess.run(["bash", "-n", ROOT / script], check=True)
