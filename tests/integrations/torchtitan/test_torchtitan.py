"""torchtitan's own trainer on CPU trains ladders: the losses are those of ladders made by hooks."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.emitted_orders import collectives

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "examples" / "torchtitan"
# float32; a mixture's experts compute in bfloat16, where a last bit of the router's moves a token.
CLOSE, CLOSE_EXPERTS = 1e-5, 1e-4
LADDER = "ladderize.integrations.torchtitan"
DTENSORS = ("--parallelism.spmd_backend", "partial_dtensor")
PAIRS = (*DTENSORS, "--parallelism.tensor_parallel_degree", "2")
EXPERTS = ("--parallelism.expert_parallel_degree", "2", "--training.disable_cuda_graphs")
TWICE = ("--training.global_batch_size", "8")  # of 4 samples each


def run(module: str, config: str, *arguments: str, **environment: str) -> dict[str, Any]:
    chosen = ["--module", module, "--config", config, "--debug.seed", "1"]
    return {"arguments": [*chosen, *arguments], "environment": environment}


def train(folder: Path, ranks: int, **runs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What each run answers (`train.py`), and the orders of collectives in the emitted code."""
    listed = folder / "runs.json"
    listed.write_text(json.dumps([*runs.values()]))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--nproc-per-node", str(ranks)),
            *(HERE / "train.py", listed, folder),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(EXAMPLES)]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        },
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    answers = json.loads((folder / "answers.json").read_text())
    wrappers = [path.read_text() for path in (folder / "inductor").rglob("*.py")]
    orders = {collectives(text) for text in wrappers if "wait_tensor" in text}
    return dict(zip(runs, answers, strict=True)), sorted(orders)


def found(answer: dict[str, Any]) -> Counter[tuple[str, bool]]:
    """How often each collective is in the report, in branches and outside of them."""
    (graph,) = answer["report"]["graphs"]
    return Counter((entry["op"], bool(entry["block"])) for entry in graph["collectives"])


def stale(answer: dict[str, Any]) -> list[int]:
    (graph,) = answer["report"]["graphs"]
    (stream,) = graph["streams"]
    return [block["index"] for block in stream["blocks"] if block["is_converted"]]


def test_two_ranks(tmp_path: Path) -> None:
    """Tensor and sequence parallelism."""
    answers, orders = train(
        tmp_path,
        2,
        standard=run("tiny", "llama3", *PAIRS),
        wanted=run("variants", "llama3", *PAIRS),
        ladder=run(LADDER, "tiny.llama3", *PAIRS, "--ladderize.verify", "code"),
        wanted_last=run("variants", "llama3", *PAIRS, *TWICE, READ_STALE="4,5"),
        last=run(
            *(LADDER, "tiny.llama3", *PAIRS, *TWICE),
            *("--ladderize.layers", "last:1", "--ladderize.lowering", "eager"),
            "activation-checkpoint:full",
        ),
    )
    losses = {name: answer["losses"] for name, answer in answers.items()}
    assert {len(each) for each in losses.values()} == {10}
    assert losses["ladder"] == pytest.approx(losses["wanted"], rel=CLOSE)
    assert losses["last"] == pytest.approx(losses["wanted_last"], rel=CLOSE)
    for other in ("standard", "wanted_last"):
        assert losses["wanted"] != pytest.approx(losses[other], rel=1e-2)
    assert stale(answers["ladder"]) == [0, 1, 2, 3, 4, 5]
    assert stale(answers["last"]) == [4, 5]
    assert found(answers["ladder"]) == {
        ("reduce_scatter_tensor", False): 1,  # the embedding's
        ("all_gather_into_tensor", True): 6,
        ("reduce_scatter_tensor", True): 6,
        ("all_gather_into_tensor", False): 1,  # for the head
    }
    assert orders == []
