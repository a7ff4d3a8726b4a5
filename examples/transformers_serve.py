"""Serve a checkpoint with `transformers serve`: as the standard model, and as a ladder.

    pip install 'transformers[serving]'
    python examples/transformers_serve.py

It writes a small Llama with random weights and a tokenizer, starts each server, sends both the same
request and prints their answers. The ladder's answer is compared with that of the eager ladder,
which recomputes all previous tokens at each step. With your own checkpoint:

    python -m ladderize.integrations.transformers serve DIR --continuous-batching
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ladderize.testing import eager_ladder

STANDARD = (sys.executable, "-m", "transformers.cli.transformers")
LADDER = (sys.executable, "-m", "ladderize.integrations.transformers")
BATCHES = ("--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "64")
READS = ("model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm")
PROMPT, NEW = "w5 w9 w33 w17 w4", 8
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "initializer_range": 0.3,  # with transformers' default, a ladder is near the standard
    "eos_token_id": None,
}


def write_checkpoint(folder: str, **config: object) -> None:
    """Write random weights, and a tokenizer with a word for each token: w0, w1, …"""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL | config)).save_pretrained(folder)
    words = {f"w{number}": number for number in range(SMALL["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0").save_pretrained(folder)


@contextmanager
def server(command: Sequence[str], folder: str, *options: str) -> Iterator[str]:
    """Run `command serve folder options` in this context; yields the server's address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    options = ("serve", folder, "--host", "127.0.0.1", "--port", port, "--device", "cpu", *options)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=subprocess.STDOUT)
        try:
            while not answers(f"{address}/health"):
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read())
                time.sleep(0.2)
            yield address
        finally:
            process.kill()
            process.wait(30)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def ask(address: str, folder: str, prompt: str = PROMPT) -> str:
    """The served model's greedy continuation."""
    body = {"model": folder, "prompt": prompt, "max_tokens": NEW, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["choices"][0]["text"]


@torch.no_grad()
def ladder_in_eager_mode(folder: str, prompt: str = PROMPT, **ladder: object) -> str:
    """The ladder's greedy continuation, without a cache."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[int(word[1:]) for word in prompt.split()]])
    length = ids.shape[1]
    with eager_ladder(model, READS, **ladder):
        for _ in range(NEW):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return " ".join(f"w{number}" for number in ids[0, length:].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--options", default="{}", help="options of ladderize.compile, as JSON")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder)
        with server(STANDARD, folder, *BATCHES) as address:
            print("standard    ", ask(address, folder))
        with server(LADDER, folder, *BATCHES, "--ladderize", options.options) as address:
            found = ask(address, folder)
        print("ladder      ", found)
        expected = ladder_in_eager_mode(folder)
        print("eager ladder", expected)
        assert found == expected


if __name__ == "__main__":
    main()
