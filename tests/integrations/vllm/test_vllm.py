"""vLLM on CPU serves a checkpoint's ladder: log-probabilities and tokens are the eager ladder's."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, Checkpoint
from helpers.emitted_orders import collectives

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
LADDER = {"mode": 2, "backend": "ladderize"}
PIECEWISE = {"mode": 3}  # vLLM's default on GPUs; a plugin of the tests keeps it on CPU
# Of several lengths; the last ones begin alike, and are longer than a chunk of a prefill.
PROMPTS = [
    [5, 17, 99, 3, 42, 64, 7, 11],
    [9, 4],
    [*range(10, 60)],
    [*range(10, 50), 7, 8, 9],
]
NEW = 5
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint("llama", tmp_path_factory.mktemp("llama"))


STANDARD = {"staleness": 0}
LAST_HALF = {"chosen": {3, 4, 5}}
SCORED = {"prompts": PROMPTS, "new": NEW, "scored": True}


def engine(checkpoint: Checkpoint, *batches: Any, **options: Any) -> dict[str, Any]:
    """A request of `engine.py`; of one batch, SCORED, if none is given."""
    settings = {
        "model": str(checkpoint.folder),
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "max_model_len": 128,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,  # less than the longest prompt
        "enable_prefix_caching": True,
        "seed": 0,
        **options,
    }
    return {"engine": settings, "batches": batches or [SCORED]}


def serve(folder: Path, *engines: dict[str, Any]) -> tuple[list[Any], str]:
    """What each engine answers to each batch, and what they print. One of two ranks is alone."""
    requests, answers = folder / "requests.json", folder / "answers.json"
    requests.write_text(json.dumps(engines))
    is_alone = any("tensor_parallel_size" in one["engine"] for one in engines)
    is_piecewise = any(one["engine"].get("compilation_config") == PIECEWISE for one in engines)
    done = subprocess.run(
        [sys.executable, HERE / "engine.py", requests, answers],
        env={
            **os.environ,
            **ENVIRONMENT,
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "VLLM_CACHE_ROOT": str(folder),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if is_alone else "0",
            "PYTHONPATH": str(HERE / "piecewise_on_cpu") if is_piecewise else "",
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-5000:]
    return json.loads(answers.read_text()), said


def check(found: list[Any], expected: list[Any], tolerance: float = 1e-4) -> None:
    for one, wanted in zip(found, expected, strict=True):
        assert one["tokens"] == wanted["tokens"]
        assert one["scores"] == pytest.approx(wanted["scores"], abs=tolerance)


def test_a_batch_of_requests_and_cached_prefixes(llama: Checkpoint, tmp_path: Path) -> None:
    """Chunked prefill and decoding of several lengths; then prompts whose prefix is cached."""
    again = [*PROMPTS[2:], [*range(10, 55), 1]]
    cached = {"prompts": again, "new": NEW, "scored": False}
    asked = engine(llama, SCORED, cached, compilation_config=LADDER)
    ((first, second),), said = serve(tmp_path, asked)
    check(first, llama.answers(PROMPTS, NEW))
    wanted = llama.answers(again, NEW)
    assert [one["tokens"] for one in second] == [one["tokens"] for one in wanted]
    assert "6 blocks in 1 stream, 5 read stale; the ladder is compiled" in said


def on_two_ranks(llama: Checkpoint, folder: Path, compilation: dict[str, Any]) -> set[str]:
    """Check the answers; the orders of launches and waits in what Inductor emitted."""
    options = {"ladderize": {"verify": "code", "layers": "all"}}
    how = {"additional_config": options, "tensor_parallel_size": 2}
    ((found,),), _ = serve(folder, engine(llama, compilation_config=compilation, **how))
    check(found, llama.answers(PROMPTS, NEW))
    wrappers = [path.read_text() for path in (folder / "inductor").rglob("*.py")]
    return {collectives(text) for text in wrappers if "all_reduce_" in text}


def test_two_ranks_hide_all_reduces(llama: Checkpoint, tmp_path: Path) -> None:
    orders = on_two_ranks(llama, tmp_path, LADDER)
    hidden = "AR_0 W_0 AR_1 AR_2 W_1 AR_3 W_2 AR_4 W_3 AR_5 W_4 AR_6"  # AR_0: the embedding
    assert orders and orders <= {f"{hidden} W_5 W_6", f"{hidden} W_6 W_5"}


def test_two_ranks_hide_all_reduces_in_each_piece(llama: Checkpoint, tmp_path: Path) -> None:
    """Up to the first attention, between two, and after the last one."""
    orders = on_two_ranks(llama, tmp_path, PIECEWISE)
    assert {"AR_0 W_0", "AR_0 AR_1 W_0 W_1"} <= orders
    assert orders <= {"AR_0 W_0", "AR_0 AR_1 W_0 W_1", "AR_0 AR_1 W_1 W_0"}
    (split,) = {path.read_text() for path in tmp_path.rglob("rank_0_0/*/computation_graph.py")}
    assert split.count("class submod_") == 2 * llama.model.config.num_hidden_layers + 1


def test_families_a_healed_checkpoint_and_the_standard_net(
    llama: Checkpoint, tmp_path: Path
) -> None:
    """Of the families the last half of the blocks; the checkpoint says itself which.

    One engine after the other: none is served what vLLM keeps of another one.
    """
    own = {"blocks": "last:50%"}
    by_eager = {"ladderize": own | {"lowering": "eager"}}
    half = {"compilation_config": LADDER, "additional_config": by_eager}
    families = {name: Checkpoint(name, tmp_path / name) for name in FAMILIES if name != "llama"}
    said = {"blocks": [3, 4, 5], "staleness": 1, "version": 1}  # as save_pretrained writes it
    healed = Checkpoint("llama", tmp_path / "healed", ladder=said)
    last_half = {"additional_config": {"ladderize": own}}
    looked_up = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    answers, _ = serve(
        tmp_path,
        *(engine(checkpoint, **half) for checkpoint in families.values()),
        engine(healed),
        engine(llama, compilation_config={"mode": 2, "backend": "eager"}),
        engine(llama, compilation_config=PIECEWISE, **last_half),
        engine(llama, compilation_config=PIECEWISE),
        engine(llama, SCORED | {"scored": False}, **half, speculative_config=looked_up),
    )
    answers = [found for (found,) in answers]
    of_families, (of_healed, *of_llama) = answers[: len(families)], answers[len(families) :]
    for (name, checkpoint), found in zip(families.items(), of_families, strict=True):
        # vLLM's standard Gemma 2 is as far from transformers'.
        tolerance = 3e-3 if name == "gemma2" else 1e-4
        check(found, checkpoint.answers(PROMPTS, NEW, **LAST_HALF), tolerance)
    standard, ladder = (llama.answers(PROMPTS, NEW, **how) for how in (STANDARD, LAST_HALF))
    check(of_healed, healed.answers(PROMPTS, NEW, **LAST_HALF))
    whole, split_ladder, split, speculated = of_llama
    check(whole, standard)
    check(split_ladder, ladder)
    check(split, standard)
    assert [one["tokens"] for one in speculated] == [one["tokens"] for one in ladder]
    assert standard[0]["scores"] != pytest.approx(ladder[0]["scores"], abs=0.1)


# ---- the server


@pytest.fixture
def server(llama: Checkpoint, tmp_path: Path) -> Iterator[str]:
    """The address of `vllm serve`, as the example starts it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(ROOT / "examples" / "vllm_serve.sh", llama.folder),
        *("--host", "127.0.0.1", "--port", port),
        *("--skip-tokenizer-init", "--dtype", "float32", "--max-model-len", "128"),
    ]
    log = tmp_path / "log"
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **ENVIRONMENT, "VLLM_CACHE_ROOT": str(tmp_path), "PATH": programs}
    environment["LADDER"] = '{"lowering": "eager"}'
    with log.open("w") as out:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            wait_until_it_serves(process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait_until_it_serves(process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(400):
        if "Application startup complete" in log.read_text():
            return
        assert process.poll() is None, log.read_text()[-5000:]
        time.sleep(1)
    raise AssertionError(log.read_text()[-5000:])


def test_a_request_over_http(server: str, llama: Checkpoint) -> None:
    body = {
        "model": str(llama.folder),
        "prompt": PROMPTS[0],
        "max_tokens": NEW,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "detokenize": False,
    }
    request = urllib.request.Request(
        f"{server}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (choice,) = json.load(answer)["choices"]
    assert choice["token_ids"] == llama.answers(PROMPTS[:1], NEW)[0]["tokens"]


# ---- what is refused


DRAFT = {"method": "draft_model", "model": "FOLDER", "num_speculative_tokens": 2}
CONFIGURATIONS: list[tuple[dict[str, Any], str]] = [
    ({"compilation_config": {"mode": 1, "backend": "ladderize"}}, "mode 1: vLLM calls no backend"),
    ({"compilation_config": {"mode": 3, "backend": "ladderize"}}, "Invalid backend for piecewise"),
    ({"compilation_config": LADDER, "enforce_eager": True}, "mode 0: vLLM compiles nothing"),
    ({"compilation_config": LADDER, "pipeline_parallel_size": 2}, "pipeline parallelism"),
    ({"compilation_config": LADDER, "enable_lora": True}, "LoRA"),
    ({"compilation_config": LADDER, "speculative_config": DRAFT}, "the draft model"),
    (
        {"compilation_config": LADDER | {"use_inductor_graph_partition": True}},
        "use_inductor_graph_partition",
    ),
    (
        {
            "compilation_config": {"mode": 2, "backend": "aot_eager"},
            "additional_config": {"ladderize": {}},
        },
        "backend 'aot_eager' in mode 2",
    ),
    (
        {"compilation_config": LADDER, "additional_config": {"ladderize": {"layer": "all"}}},
        "did you mean 'layers'",
    ),
    ({"compilation_config": LADDER}, "mode 2, backend 'ladderize', {'ladderize': {}}"),
    (
        {"compilation_config": {"backend": "ladderize"}},
        "mode 2, backend 'inductor', {'ladderize': {}}",
    ),
    ({"additional_config": {"ladderize": {}}}, "mode 2, backend 'inductor', {'ladderize': {}}"),
    ({}, "mode 2, backend 'inductor', {}"),
]
CONFIGURE = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
said = []
for options in json.loads(sys.argv[2]):
    try:
        config = EngineArgs(
            model=sys.argv[1], skip_tokenizer_init=True, **options
        ).create_engine_config()
        mode, backend = config.compilation_config.mode, config.compilation_config.backend
        said.append(f"mode {int(mode)}, backend {backend!r}, {config.additional_config}")
    except ValueError as error:
        said.append(str(error))
print("SAID", json.dumps(said))
"""


def test_what_would_be_a_standard_net_does_not_start(llama: Checkpoint) -> None:
    asked = json.dumps([options for options, _ in CONFIGURATIONS])
    folder = str(llama.folder)
    done = subprocess.run(
        [sys.executable, "-c", CONFIGURE, folder, asked.replace("FOLDER", folder)],
        cwd=llama.folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(re.search(r"^SAID (.*)$", done.stdout, re.MULTILINE)[1])
    for (options, wanted), found in zip(CONFIGURATIONS, said, strict=True):
        assert wanted in found, (options, found)
