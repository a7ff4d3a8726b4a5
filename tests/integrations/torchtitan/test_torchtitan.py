"""torchtitan's trainer trains ladders on CPU, with the losses of ladders made by hooks."""

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.emitted_orders import collectives
from helpers.pages import blocks, commands

import ladderize
from ladderize import LadderError, LadderWarning
from ladderize.integrations.torchtitan import Parallelize, ladder
from ladderize.testing import eager_ladder

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "examples" / "torchtitan"
# float32; a mixture's experts compute in bfloat16, where a last bit of the router's moves a token.
CLOSE, CLOSE_EXPERTS = 1e-5, 1e-4
LADDER = "ladderize.integrations.torchtitan"
DTENSORS = ("--parallelism.spmd_backend", "partial_dtensor")
PAIRS = (*DTENSORS, "--parallelism.tensor_parallel_degree", "2")
EXPERTS = ("--parallelism.expert_parallel_degree", "2", "--training.disable_cuda_graphs")
# Of the embedding, and for the head: nothing hides them.
AROUND = {("reduce_scatter_tensor", False): 1, ("all_gather_into_tensor", False): 1}
# In the middle of a block the last reduce-scatter is waited for, and what it brings is gathered for
# the block after. Backward, W_? wait for what the forward pass has waited for: torchtitan's policy
# of selective checkpointing saves a collective, and recomputes its wait.
BEGIN_TWO = "RS_0 W_RS_0 AG_0 AG_1 W_AG_0 RS_1 W_AG_1"
BEGIN_FOUR = "RS_0 W_RS_0 AG_0 W_AG_0 RS_1 AG_1 W_AG_1"
FORWARD = "W_RS_1 AG_2 RS_2 W_AG_2 W_RS_2 AG_3 RS_3 W_AG_3 RS_4 W_RS_3 W_RS_4 AG_4 W_AG_4"
BACKWARD = (
    "W_? W_? AG_0 W_AG_0 AG_1 W_AG_1 RS_0 AG_2 W_AG_2 W_RS_0 AG_3 RS_1 W_AG_3 AG_4 W_AG_4 "
    "W_RS_1 AG_5 RS_2 W_AG_5 AG_6 W_AG_6 RS_3 W_RS_2 W_RS_3 AG_7 W_AG_7"
)
READS = ["layers.*.attention_norm", "layers.*.ffn_norm"]
TWICE = ("--training.global_batch_size", "8")  # of 4 samples each


def run(module: str, config: str, *arguments: str, **environment: str) -> dict[str, Any]:
    chosen = ["--module", module, "--config", config, "--debug.seed", "1"]
    return {"arguments": [*chosen, *arguments], "environment": environment}


def train(folder: Path, ranks: int, **runs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What each run answers (`train.py`), and the orders of collectives in the emitted code."""
    before = set((folder.parent / "inductor").rglob("*.py"))
    listed = folder / "runs.json"
    listed.write_text(json.dumps([*runs.values()]))
    torchrun(folder, ranks, str(HERE / "train.py"), str(listed), str(folder))
    answers = json.loads((folder / "answers.json").read_text())
    emitted = set((folder.parent / "inductor").rglob("*.py")) - before
    wrappers = [path.read_text() for path in emitted]
    orders = {collectives(text) for text in wrappers if "wait_tensor" in text}
    return dict(zip(runs, answers, strict=True)), sorted(orders)


def torchrun(folder: Path, ranks: int, *program: str) -> str:
    """What the program prints in `ranks` processes.

    Once more where a rank died of a signal: its heap was corrupt in 2 of about 30 runs, never where
    it was looked for (docs/torchtitan.md). The summary of warnings then says so.
    """
    done = started(folder, ranks, *program)
    if done.returncode and "(SIGABRT)" in done.stdout + done.stderr:
        warnings.warn("a rank of torchtitan died of SIGABRT; it is run again", stacklevel=2)
        done = started(folder, ranks, *program)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    return said


def started(folder: Path, ranks: int, *program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(ranks), *program),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(EXAMPLES)]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder.parent / "inductor"),  # kernels of all tests
        },
        capture_output=True,
        text=True,
        timeout=380,
    )


def found(answer: dict[str, Any]) -> Counter[tuple[str, bool]]:
    """How often each collective is in the report, in branches and outside of them."""
    (graph,) = answer["report"]["graphs"]
    return Counter((entry["op"], bool(entry["block"])) for entry in graph["collectives"])


def stale(answer: dict[str, Any]) -> list[int]:
    (graph,) = answer["report"]["graphs"]
    (stream,) = graph["streams"]
    return [b["index"] for b in stream["blocks"] if b["reads_before"] != b["reads_after"]]


@pytest.fixture(scope="module")
def parse() -> Any:
    """torchtitan's own reading of the command line, in this process."""
    import on_cpu

    on_cpu.use_cpu()
    from torchtitan.config import ConfigManager

    def parse_args(*arguments: str) -> Any:
        return ConfigManager().parse_args(list(arguments))

    return parse_args


def test_two_ranks(tmp_path: Path) -> None:
    """Tensor and sequence parallelism; a part of the layers, checkpointed whole, accumulates."""
    answers, orders = train(
        tmp_path,
        2,
        standard=run("tiny", "llama3", *PAIRS),
        wanted=run("variants", "llama3", *PAIRS),
        ladder=run(LADDER, "tiny.llama3", *PAIRS, "--ladderize.verify", "code"),
        wanted_last=run("variants", "llama3", *PAIRS, *TWICE, READ_STALE="2,3"),
        last=run(
            *(LADDER, "tiny.llama3", *PAIRS, *TWICE, "--validator.enable"),
            *("--ladderize.layers", "last:1", "--ladderize.lowering", "aot_eager"),
            "activation-checkpoint:full",
        ),
    )
    losses = {name: answer["losses"] for name, answer in answers.items()}
    assert {len(each) for each in losses.values()} == {10}
    assert losses["ladder"] == pytest.approx(losses["wanted"], rel=CLOSE)
    assert losses["last"] == pytest.approx(losses["wanted_last"], rel=CLOSE)
    for other in ("standard", "wanted_last"):
        assert losses["wanted"] != pytest.approx(losses[other], rel=1e-2)
    assert stale(answers["ladder"]) == [1, 2, 3]
    assert stale(answers["last"]) == [2, 3]
    assert found(answers["ladder"]) == AROUND | {
        ("all_gather_into_tensor", True): 4,
        ("reduce_scatter_tensor", True): 4,
    }
    assert orders == [f"{BEGIN_TWO} {FORWARD}", BACKWARD]


def test_experts_and_local_tensors(tmp_path: Path) -> None:
    """A mixture of experts, whole and with its experts on different ranks; and spmd_types."""
    eager = ("--ladderize.lowering", "aot_eager")
    local = ("--parallelism.tensor_parallel_degree", "2")
    apart = (*PAIRS, *EXPERTS)
    answers, _ = train(
        tmp_path,
        2,
        wanted=run("variants", "qwen3_moe", *PAIRS),
        ladder=run(LADDER, "tiny.qwen3_moe", *PAIRS, *eager),
        wanted_apart=run("variants", "qwen3_moe", *apart),
        ladder_apart=run(LADDER, "tiny.qwen3_moe", *apart, *eager),
        standard_apart=run("tiny", "qwen3_moe", *apart),
        wanted_local=run("variants", "llama3_spmd", *local),
        ladder_local=run(LADDER, "variants.standard_llama3_spmd", *local, *eager, BARE="1"),
    )
    losses = {name: answer["losses"] for name, answer in answers.items()}
    for kind, tolerance in (("", CLOSE_EXPERTS), ("_apart", CLOSE_EXPERTS), ("_local", CLOSE)):
        assert losses[f"ladder{kind}"] == pytest.approx(losses[f"wanted{kind}"], rel=tolerance)
    assert losses["standard_apart"] != pytest.approx(losses["wanted_apart"], rel=5e-4)
    in_branches = {("all_gather_into_tensor", True): 4, ("reduce_scatter_tensor", True): 4}
    assert found(answers["ladder"]) == AROUND | in_branches
    assert found(answers["ladder_apart"]) == AROUND | {
        ("all_to_all_single", True): 6,  # sizes, tokens, and back
        ("all_gather_into_tensor", True): 2,
        ("reduce_scatter_tensor", True): 2,
    }
    assert stale(answers["ladder_apart"]) == [1, 2, 3]
    # Their autograd functions show what the backward pass launches.
    gathered, scattered = "all_gather_into_tensor", "reduce_scatter_tensor"
    backward = {(f"{op} (backward)", True): 4 for op in (gathered, scattered)}
    backward |= {(f"{op} (backward)", False): 1 for op in (gathered, scattered)}
    assert found(answers["ladder_local"]) == AROUND | in_branches | backward
    assert "without a mesh: it would skip all its collectives" in answers["ladder_local"]["bare"]


def test_four_ranks(tmp_path: Path) -> None:
    """FSDP2 over two pairs, selective checkpointing; experts on the ranks of a pair."""
    eager = ("--ladderize.lowering", "aot_eager")
    answers, orders = train(
        tmp_path,
        4,
        wanted=run("variants", "llama3", *PAIRS),
        ladder=run(LADDER, "tiny.llama3", *PAIRS),
        wanted_apart=run("variants", "qwen3_moe", *PAIRS, *EXPERTS),
        ladder_apart=run(LADDER, "tiny.qwen3_moe", *PAIRS, *EXPERTS, *eager),
    )
    apart = [answers[name]["losses"] for name in ("wanted_apart", "ladder_apart")]
    assert apart[1] == pytest.approx(apart[0], rel=CLOSE_EXPERTS)
    assert stale(answers["ladder_apart"]) == [1, 2, 3]
    wanted, ladder = (answers[name]["losses"] for name in ("wanted", "ladder"))
    assert len(ladder) == 10
    assert ladder == pytest.approx(wanted, rel=CLOSE)
    assert found(answers["ladder"])[("reduce_scatter_tensor", True)] == 4
    assert orders == [f"{BEGIN_FOUR} {FORWARD}", BACKWARD]


@pytest.mark.usefixtures("parse")
def test_torchtitans_own_attention() -> None:
    """FlexAttention, which computes on CPU where no gradient is asked for; two documents a row."""
    import tiny
    from torchtitan.models.common.attention import FlexAttention

    config = tiny.llama3()
    described = config.model_spec.model
    for layer in described.layers:
        layer.attention.inner_attention = FlexAttention.Config()
    described.update_from_config(config=config)
    model = described.build()
    torch.manual_seed(0)
    ids, positions = torch.randint(256, (2, 32)), torch.arange(16).repeat(2).expand(2, -1)
    with torch.no_grad():
        model.init_weights(buffer_device=torch.device("cpu"))
        inputs = {"attention_masks": model.get_attention_masks(positions), "positions": positions}
        standard = model(ids, **inputs)
        with eager_ladder(model, READS):
            wanted = model(ids, **inputs)
        found = ladderize.compile(model, lowering="eager")(ids, **inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (standard - wanted).abs().max() > 0.1
    assert [block.kind for block in ladderize.last_report().blocks] == ["attention", "MLP"] * 2


# ---- the page


PAGE = "docs/torchtitan.md"
COMMANDS = [
    pytest.param(block.printed, shlex.split(line), id=f"command{number}")
    for number, (block, line) in enumerate(
        (block, line) for block in blocks(PAGE) if block.kind == "sh" for line in commands(block)
    )
]


@pytest.mark.parametrize(("printed", "words"), COMMANDS)
def test_the_commands_of_the_page(
    parse: Any, printed: str, words: list[str], tmp_path: Path
) -> None:
    """What runs on CPU prints what the page says; of what needs GPUs the flags are taken."""
    launcher, ranks, number, *rest = words
    assert (launcher, ranks) == ("torchrun", "--nproc-per-node")
    if rest[:2] == ["-m", "torchtitan.train"]:
        config = parse(*rest[2:])
        assert isinstance(config.model_spec.parallelize_fn, Parallelize)
        assert not printed
        return
    said = torchrun(tmp_path, int(number), str(HERE.parents[2] / rest[0]), *rest[1:])
    *shown, last = printed.splitlines()
    assert [line for line in shown if line.strip() not in said] == []
    (wanted,) = re.findall(r"^step: 10  loss:  (\S+)$", last)
    losses = dict(re.findall(r"step: +(\d+)  loss: +(\S+)", said))
    assert float(losses["10"]) == pytest.approx(float(wanted), rel=1e-3)


# ---- the configuration


CHOSEN = ("--module", LADDER, "--config", "tiny.llama3")
REFUSED = {
    "--compile.enable": "torchtitan compiles each layer, but ladderize",
    "--parallelism.pipeline_parallel_degree=2": "pipeline parallelism",
    "--parallelism.context_parallel_degree=2": "context parallelism is not tested",
    "--parallelism.fsdp_reshard_after_forward=always": "stay gathered until the end",
    "--training.enable_cpu_offload": "offloading parameters",
    "--debug.spmd_typechecking": "it checks eager calls",
}
ALLOWED = (
    (("--compile.enable", "--compile.components", "loss"), {}),
    (("--parallelism.fsdp_reshard_after_forward", "never"), {}),
    (
        ("--ladderize.blocks", "last:50%", "--ladderize.staleness", "2"),
        {"blocks": "last:50%", "staleness": 2},
    ),
)


@pytest.fixture
def refusal(parse: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """What torchtitan prints instead of starting, without its frame."""

    def refusal_of(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            parse(*arguments)
        return " ".join(capsys.readouterr().err.replace("│", " ").split())

    return refusal_of


@pytest.mark.parametrize("flag", REFUSED)
def test_what_would_train_something_else_does_not_start(refusal: Any, flag: str) -> None:
    said = refusal(*CHOSEN, flag, "--training.disable_cuda_graphs")
    assert "torchtitan cannot train this ladder:" in said
    assert [words for words in REFUSED.values() if words in said] == [REFUSED[flag]]


def test_all_that_is_in_the_way_is_said_at_once(refusal: Any) -> None:
    together = list(REFUSED)[:-1]  # torchtitan itself types no pipelines
    said = refusal(*CHOSEN, *together, "--training.disable_cuda_graphs")
    assert all(REFUSED[flag] in said for flag in together)


@pytest.mark.usefixtures("parse")
def test_quantized_models_are_refused() -> None:
    """Already where the configuration is made; torchtitan's converter of float8 needs a GPU."""
    import tiny
    from torchtitan.components.quantization.float8 import Float8Linear
    from torchtitan.models.common.linear import Linear

    config = tiny.llama3()
    for _, linear, parent, name in config.model_spec.model.traverse(Linear.Config):
        sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
        setattr(parent, name, Float8Linear.Config(**sizes))
    with pytest.raises(LadderError, match="quantized training is not tested"):
        ladder(config)


def test_options_are_checked_when_the_configuration_is_made(refusal: Any) -> None:
    assert "lowering='fast' is not one of" in refusal(*CHOSEN, "--ladderize.lowering", "fast")


@pytest.mark.parametrize(("flags", "options"), ALLOWED)
def test_flags_reach_the_backend(
    parse: Any, flags: tuple[str, ...], options: dict[str, Any]
) -> None:
    found = parse(*CHOSEN, *flags).model_spec.parallelize_fn
    standard = parse("--module", "tiny", "--config", "llama3").model_spec.parallelize_fn
    assert found.original is standard
    given = {"staleness": 1, "lowering": "inductor", "verify": "graph"}
    assert found.options == {**given, "connectivity": "ladder", "variant": "ladder"} | options


@pytest.mark.usefixtures("parse")
def test_a_configuration_of_ones_own() -> None:
    import tiny

    config = ladder(tiny.llama3(), layers="0")
    assert type(config).__mro__[1] is type(tiny.llama3())
    assert config.ladderize.layers == config.model_spec.parallelize_fn.options["layers"] == "0"


def test_another_version_is_warned_of(monkeypatch: pytest.MonkeyPatch, parse: Any) -> None:
    import torchtitan

    monkeypatch.setattr(torchtitan, "__version__", "0.4.0")
    with pytest.warns(LadderWarning, match=r"torchtitan 0\.4\.0 was not tried.*0\.3 was"):
        parse(*CHOSEN)


def test_what_is_no_configuration_is_said(parse: Any) -> None:
    with pytest.raises(ValueError, match="Config function 'llama3' not found"):
        parse("--module", LADDER, "--config", "llama3")
