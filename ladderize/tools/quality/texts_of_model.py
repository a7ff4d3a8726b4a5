"""Load a model with weights by its name, and text as batches for it.

hf:DIR, files ── model, tokenizer of DIR ── [{"input_ids": [batch, length]}, …]
module:factory ── model, and the inputs that the function returns
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ladderize.errors import LadderError
from ladderize.frontends.compile import compile
from ladderize.quality.texts import read_tokens
from ladderize.tools.sources.model_names import HUGGING_FACE, is_configuration
from ladderize.tools.sources.opened_models import Module, open_model

Batches = list[Mapping[str, Any]]


@dataclass(frozen=True)
class MeasuredText:
    """A model and the text to measure it on.

    Attributes:
        model: model in eval mode.
        batches: keyword arguments, one mapping per call.
        rest: remaining sequences of the text, `[sequences, length]`; None without text.
    """

    model: nn.Module
    batches: Batches
    rest: Tensor | None = None


def model_with_batches(
    name: str, texts: Sequence[Path], *, tokens: int, length: int, batch: int, device: str | None
) -> MeasuredText:
    """Load the model called `name`, and batches of `tokens` tokens of `texts`.

    Args:
        name: MODEL, as on the command line; it must have weights.
        texts: text files; empty for a factory, whose inputs are the batch.
        tokens: number of tokens, rounded up to whole batches and spread over the texts.
        length: tokens per sequence.
        batch: sequences per batch.
        device: device of the model; None for cuda if there is one.

    Raises:
        LadderError: the model has no weights, a text cannot be read or is too short, or the
            tokenizer does not fit.
    """
    model, source = trained_model(name, device)
    where = next(model.parameters()).device
    if texts:
        batches, rest = batches_of(model, name, texts, tokens, length, batch)
        return MeasuredText(model, [_on(where, each) for each in batches], rest)
    if is_folder(name):
        raise LadderError("No text to measure on.", cure="give --text FILE, once for each file")
    return MeasuredText(model, [_on(where, _as_keywords(model, source.args, source.kwargs))])


def text_to_heal_on(measured: MeasuredText) -> Tensor:
    """The sequences that the measurement does not use.

    Raises:
        LadderError: there are none.
    """
    if measured.rest is None or not len(measured.rest):
        raise LadderError(
            "No text to heal on: the measurement uses all of it.",
            cure="give more text, or a smaller --tokens",
        )
    return measured.rest


def is_folder(name: str) -> bool:
    """Whether `name`, with or without `hf:`, is a folder with a configuration."""
    return (_folder(name) / "config.json").is_file()


def trained_model(name: str, device: str | None) -> tuple[nn.Module, Module]:
    """The model called `name` in eval mode, on `device` (None: cuda if there is one).

    Raises:
        LadderError: there is no such model, it is an exported program, or it has no weights.
    """
    is_named = is_folder(name) or is_configuration(name)
    if is_named and not any(_folder(name).glob("*.safetensors")):
        raise LadderError(
            f"{_folder(name)} has no weights: random ones say nothing about quality.",
            cure="pass the folder of a trained model, with its *.safetensors and tokenizer",
        )
    source = open_model(f"{HUGGING_FACE}{_folder(name)}" if is_folder(name) else name)
    if not isinstance(source, Module):
        raise LadderError(
            f"{name} is an exported program, whose reads cannot be changed at run time.",
            cure="pass the model that it was exported from: hf:DIR or module:factory",
        )
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return source.model.to(where).eval(), source


def ladder_model(
    name: str, options: Mapping[str, Any], lowering: str, device: str | None
) -> nn.Module:
    """The model called `name` as the ladder of `options` or of its config.json.

    Raises:
        LadderError: neither describes a ladder, or they contradict each other.
    """
    model, source = trained_model(name, device)
    if source.entry is None and not options:
        raise LadderError(
            f"{name} is not a ladder: its config.json does not say which blocks are converted.",
            cure="pass the folder that ladderize heal wrote, or --blocks or --layers",
        )
    return compile(model, lowering=lowering, **options)


def batches_of(
    model: nn.Module, name: str, texts: Sequence[Path], tokens: int, length: int, batch: int
) -> tuple[Batches, Tensor]:
    """Tokenized batches for the model in the folder called `name`, and the remaining rows."""
    count = -(-tokens // (length * batch))
    tokenizer = tokenizer_of(_folder(name))
    rows = read_tokens(texts, tokenizer, length, model=model, at_least=count * batch)
    # Spread over the text, whose first pages may all be of one kind.
    chosen = torch.linspace(0, len(rows) - 1, count * batch).round().long()
    is_chosen = torch.zeros(len(rows), dtype=torch.bool).index_fill(0, chosen, True)
    batches: Batches = [{"input_ids": part} for part in rows[chosen].view(count, batch, length)]
    return batches, rows[~is_chosen]


def tokenizer_of_model(name: str) -> Any:
    """The tokenizer of the folder called `name`."""
    return tokenizer_of(_folder(name))


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        LadderError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        # trust_remote_code=None would ask on a terminal whether to run the folder's code.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise LadderError(f"There is no tokenizer in {folder}: {reason}") from error


def _folder(name: str) -> Path:
    return Path(name.removeprefix(HUGGING_FACE))


def _as_keywords(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call as keywords."""
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    moved: dict[str, Any] = pytree.tree_map_only(Tensor, lambda t: t.to(device), dict(batch))
    return moved
