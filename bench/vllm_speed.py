"""Measure throughput and inter-token latency of a model and its ladder in vLLM, on two CPU ranks.

    bench/vllm_speed.py [--rounds 3 --latency 0.002 --bandwidth 1e9] [--out results.json]

Run it with the Python of an environment that tests/integrations/vllm/install.sh creates. Each round
starts `vllm serve` and runs `vllm bench serve`, once for the standard model and once for its
ladder. With `--latency` the ranks are joined by an emulated link, which also carries the standard
model's all-reduces; without it vLLM reduces through shared memory, the fastest way on one machine.
Compare ratios within one run.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VLLM = Path(sys.executable).with_name("vllm")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
VARIANTS: dict[str, list[str]] = {
    "standard": [],
    "ladder": ["--additional-config", '{"ladderize": {}}'],
}
MEASURED = {"output_throughput": "tokens/s", "median_itl_ms": "ms between tokens, median"}
WORDS = 512


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoint(folder / "model", options.layers, options.hidden)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
        for _ in range(options.rounds):
            for name, arguments in VARIANTS.items():
                with server(folder, arguments, options) as port:
                    found[name].append(measure(folder, port, options))
                print(name, found[name][-1], flush=True)
    summary = {
        key: {name: statistics.median(one[key] for one in runs) for name, runs in found.items()}
        for key in MEASURED
    }
    for key, words in MEASURED.items():
        standard, ladder = summary[key]["standard"], summary[key]["ladder"]
        print(
            f"{words}: standard {standard:.1f}, ladder {ladder:.1f}, ratio {ladder / standard:.2f}"
        )
    if options.out:
        options.out.write_text(json.dumps({"options": str(options), "runs": found}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=16, help="number of requests per run")
    parser.add_argument("--tokens", type=int, default=32, help="tokens per prompt and per answer")
    parser.add_argument("--latency", type=float, default=0, help="seconds; 0: no emulated link")
    parser.add_argument("--bandwidth", type=float, default=1e9, help="bytes per second")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def write_checkpoint(folder: Path, layers: int, hidden: int) -> None:
    """Write a Llama with random weights, and a tokenizer, with which `vllm bench` counts words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w3"
    ).save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=WORDS,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@contextmanager
def server(folder: Path, arguments: list[str], options: argparse.Namespace) -> Iterator[int]:
    """Run `vllm serve` on two ranks; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_CACHE_ROOT": str(folder / "cache")}
    if options.latency:
        environment["LADDERIZE_LINK"] = f"{options.latency} {options.bandwidth}"
        environment["PYTHONPATH"] = str(HERE / "vllm_link")
    command = [
        *(VLLM, "serve", folder / "model", "--host", "127.0.0.1", "--port", port),
        *("--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4"),
        *("--tensor-parallel-size", "2", *arguments),
    ]
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, cwd=folder, stdout=out, stderr=out
        )
        try:
            wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
            yield port
        finally:
            process.terminate()
            process.wait(60)


def wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"vLLM did not start; {log.read_text()}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise SystemExit(f"vLLM did not start:\n{log.read_text()[-5000:]}")


def measure(folder: Path, port: int, options: argparse.Namespace) -> dict[str, float]:
    """Run `vllm bench serve`, four requests at a time, after a warm-up; return its results."""
    command = [
        *(VLLM, "bench", "serve", "--model", folder / "model", "--host", "127.0.0.1"),
        *("--port", port, "--dataset-name", "random", "--ignore-eos", "--num-warmups", 4),
        *("--random-input-len", options.tokens, "--random-output-len", options.tokens),
        *("--num-prompts", options.prompts, "--max-concurrency", 4),
        *("--save-result", "--result-dir", folder, "--result-filename", "result.json"),
    ]
    done = subprocess.run(
        [*map(str, command)],
        env={**os.environ, **ENVIRONMENT},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    result = json.loads((folder / "result.json").read_text())
    return {key: result[key] for key in MEASURED}


if __name__ == "__main__":
    main()
