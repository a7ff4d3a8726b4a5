"""A model with weights by its name, and text as batches for it.

hf:DIR, files ── model, tokenizer of DIR ── [{"input_ids": [batch, length]}, …]
module:factory ── model, and the inputs that the function returns
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ladderize.errors import LadderError
from ladderize.quality.texts import read_tokens
from ladderize.tools.sources import HUGGING_FACE, Module, open_model

Batches = list[Mapping[str, Any]]


def model_with_batches(
    name: str, texts: Sequence[Path], *, tokens: int, length: int, batch: int, device: str | None
) -> tuple[nn.Module, Batches]:
    """The model called `name`, and batches of the first `tokens` tokens of `texts`.

    Args:
        name: as on the command line, of a model with weights.
        texts: files; none for a factory, whose inputs are the batch.
        tokens: rounded up to whole batches.
        length: tokens per sequence.
        batch: sequences per batch.
        device: None: cuda if there is one.

    Raises:
        LadderError: the model has no weights, a text cannot be read or is too short, the
            tokenizer does not fit.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    source = open_model(_as_folder(name))
    if not isinstance(source, Module):
        raise LadderError(
            f"{name} is an exported program, whose reads cannot be exchanged.",
            cure="pass the model that it was exported from: hf:DIR or module:factory",
        )
    model = source.model.to(where).eval()
    if texts:
        batches = _batches_of(model, name, texts, tokens, length, batch)
    elif name.startswith(HUGGING_FACE) or Path(name).is_dir():
        raise LadderError("No text to measure on.", cure="--text FILE, once for each file")
    else:
        batches = [_as_keywords(model, source.args, source.kwargs)]
    return model, [_on(where, batch) for batch in batches]


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        LadderError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise LadderError(f"There is no tokenizer in {folder}: {reason}") from error


def _as_folder(name: str) -> str:
    """`DIR` for `hf:DIR`."""
    return f"{HUGGING_FACE}{name}" if (Path(name) / "config.json").is_file() else name


def _batches_of(
    model: nn.Module, name: str, texts: Sequence[Path], tokens: int, length: int, batch: int
) -> Batches:
    folder = Path(name.removeprefix(HUGGING_FACE))
    if not any(folder.glob("*.safetensors")):
        raise LadderError(
            f"{folder} has no weights: random ones say nothing about quality.",
            cure="pass the folder of a trained model, with its *.safetensors and tokenizer",
        )
    count = -(-tokens // (length * batch))
    rows = read_tokens(texts, tokenizer_of(folder), length, model=model, at_least=count * batch)
    # Spread over the text: its first pages may be all of one kind.
    chosen = torch.linspace(0, len(rows) - 1, count * batch).round().long()
    return [{"input_ids": part} for part in rows[chosen].view(count, batch, length)]


def _as_keywords(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call by names."""
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _on(device: str, batch: Mapping[str, Any]) -> dict[str, Any]:
    moved: dict[str, Any] = pytree.tree_map_only(Tensor, lambda t: t.to(device), dict(batch))
    return moved
