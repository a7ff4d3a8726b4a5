"""Read text from files as token sequences of one length.

a.txt                      one document
b.jsonl                    one document per line, its "text"
folder of datasets         one document per row, its "text"

documents ── tokens, <eos> after each ── [sequences, length], the rest is dropped
"""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ladderize.errors import Blocker, LadderError, counted

_JSON_LINES = (".jsonl", ".ndjson")
_FIELD = "text"


def read_tokens(
    sources: str | Path | Sequence[str | Path],
    tokenizer: Any,
    length: int,
    *,
    model: nn.Module | None = None,
    at_least: int = 1,
) -> Tensor:
    """The tokens of `sources`, in order, cut into sequences of `length`.

    >>> tokens = read_tokens(["notes.txt", "chats.jsonl"], tokenizer, 128, model=model)

    Args:
        sources: UTF-8 text files, JSON lines (`.jsonl`) with a "text" each, or folders written by
            `datasets.save_to_disk` with a column "text" (in the split "train").
        tokenizer: transformers tokenizer. Its `eos_token_id`, if any, ends each document.
        length: tokens per sequence. Tokens after the last whole sequence are dropped.
        model: model that will read the tokens, to check that its embedding has every token and
            that it has `length` positions.
        at_least: least number of sequences, such as one batch.

    Returns:
        Tokens on the CPU, int64 `[sequences, length]`.

    Raises:
        LadderError: files cannot be read (all are listed, with lines), there are fewer than
            `at_least` sequences, or tokenizer or length do not fit the model.
    """
    if model is not None:
        _refuse_misfits(tokenizer, length, model)
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    documents = _read_all([Path(source) for source in given])
    tokens = torch.tensor(list(_tokens(documents, tokenizer)), dtype=torch.int64)
    if model is not None and len(tokens):
        _refuse_foreign(int(tokens.max()), model)
    return _cut(tokens, length, at_least, given)


def _tokens(documents: Sequence[str], tokenizer: Any) -> Iterator[int]:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for document in documents:
        yield from tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        yield from end


def _cut(tokens: Tensor, length: int, at_least: int, sources: Sequence[object]) -> Tensor:
    count, needed = len(tokens) // length, max(at_least, 1)
    if count < needed:
        raise LadderError(
            f"The text is too short: {len(tokens)} tokens in {', '.join(map(str, sources))}, but "
            f"{needed * length} are needed for {counted(needed, 'sequence')} of {length}.",
            cure="give more text, a smaller --batch or a smaller --length",
        )
    return tokens[: count * length].view(count, length)


# ---- the files


def _read_all(paths: Sequence[Path]) -> list[str]:
    documents: list[str] = []
    blockers = [] if paths else [Blocker("no file was named")]
    for path in paths:
        try:
            found = [text for text in _reader_of(path)(path) if text.strip()]
        except ValueError as error:
            blockers.append(Blocker(str(error)))
            continue
        documents += found
        if not found:
            blockers.append(Blocker(f"{path} holds no text"))
    if blockers:
        raise LadderError("These texts cannot be read:", blockers)
    return documents


def _reader_of(path: Path) -> Callable[[Path], Iterator[str]]:
    if path.is_dir():
        return _rows
    return _json_lines if path.suffix in _JSON_LINES else _whole_file


def _whole_file(path: Path) -> Iterator[str]:
    yield _decoded(path)


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if line.strip():
            yield _text_of(line, f"{path}:{number}")


def _text_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    text = row.get(_FIELD) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(f'{where} has no "{_FIELD}"')
    return text


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 from byte {error.start} on") from None


def _rows(folder: Path) -> Iterator[str]:
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise ValueError(f"{folder} is a folder that datasets.save_to_disk did not write")
    if find_spec("datasets") is None:
        raise ValueError(f"{folder} needs the package datasets: pip install datasets")
    import datasets

    try:
        found: Any = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(found, dict):
        if "train" not in found:
            raise ValueError(f'{folder} has no split "train", but {", ".join(found)}')
        found = found["train"]
    if _FIELD not in found.column_names:
        raise ValueError(f'{folder} has no column "{_FIELD}", but {", ".join(found.column_names)}')
    yield from found[_FIELD]


# ---- the model


def _refuse_misfits(tokenizer: Any, length: int, model: nn.Module) -> None:
    _refuse_foreign(len(tokenizer) - 1, model)
    positions = getattr(_text_config(model), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise LadderError(
            f"The model has {counted(positions, 'position')}, too few for sequences of {length} "
            "tokens.",
            cure="use a smaller --length",
        )


def _refuse_foreign(largest: int, model: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise LadderError(
            f"The tokenizer does not fit the model: its tokens go up to {largest}, but the "
            f"embedding has {rows} rows.",
            cure="use the tokenizer that the model was trained with",
        )


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)
