"""Seconds of CPU that each verb takes from its first import to its last line.

    python bench/start_up.py [--repeat 3] [--before DIR]

Each command runs in a process of its own, in turns with the same command of the checkout `--before`
names; user and system time, of the processes that it starts too. The model is a Llama of 2 layers,
hidden size 64, without a file of weights.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = [
    "--help",
    "--version",
    "explain nowhere.pt2",
    "explain hf:nowhere",
    "explain nomodule:factory",
    "explain hf:llama.json --no-such-flag",
    "explain hf:llama.json",
    "explain hf:llama.json --tp 2",
    "rewrite hf:llama.json --out ladder.pt2 --force",
    "verify hf:llama.json ladder.pt2",
    "plot hf:llama.json --out plot.html",
    "plan hf:llama.json",
    "demo",
]
ENTRY = "from ladderize.tools.cli import main; main()"


def write_config(folder: str) -> None:
    from transformers import LlamaConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
    LlamaConfig(**sizes, **heads, architectures=["LlamaForCausalLM"]).to_json_file(
        Path(folder, "llama.json")
    )


def cpu_seconds(checkout: Path, command: str, folder: str) -> float:
    """What the command took; its own message, if it refuses, is dropped."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", ENTRY, *command.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--before", type=Path, help="an older checkout")
    args = parser.parse_args()
    here = Path(__file__).parents[1]
    checkouts = [here] if args.before is None else [args.before.resolve(), here]
    with tempfile.TemporaryDirectory() as folder:
        write_config(folder)
        for command in COMMANDS:
            taken: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
            for _ in range(args.repeat):
                for checkout in checkouts:
                    taken[checkout].append(cpu_seconds(checkout, command, folder))
            medians = [f"{statistics.median(each):6.2f}" for each in taken.values()]
            print(f"{command:40}", *medians, flush=True)


if __name__ == "__main__":
    main()
