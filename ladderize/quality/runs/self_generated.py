"""Text that a model writes itself, for those who have no text like that it was trained on.

<bos> ── sampled at temperature 1, `length` tokens ── a line of OUT/self_generated.jsonl
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladderize.errors import LadderError
from ladderize.report.files import write_file

NAME = "self_generated.jsonl"
_ROWS = 8


def write_own_text(
    path: Path,
    model: Any,
    tokenizer: Any,
    num_tokens: int,
    length: int,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
) -> None:
    """Write text of `model` to `path`, a document of at most `length` tokens a line.

    The random state of torch is as before when it returns.

    Args:
        path: a `.jsonl`, which appears as a whole.
        model: of transformers, standard.
        num_tokens: at least so many are written in all.
        seed: of the sampling.
        tell: is called with the tokens that are written and those that are wanted.

    Raises:
        LadderError: the tokenizer has no token to begin with.
    """
    first = _first_token(tokenizer)
    lines, count = [], 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        while count < num_tokens:
            for row in _sample(model, first, length, tokenizer):
                count += len(row)
                lines.append(json.dumps({"text": tokenizer.decode(row, skip_special_tokens=True)}))
            tell(min(count, num_tokens), num_tokens)
    write_file(path, "".join(f"{line}\n" for line in lines), force=True)


def _first_token(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise LadderError(
        "The tokenizer has no <bos> and no <eos> for the model to begin a text with.",
        cure="give text files instead",
    )


@torch.no_grad()
def _sample(model: Any, first: int, length: int, tokenizer: Any) -> Iterator[Tensor]:
    """Rows without the first token, up to their end."""
    ids = torch.full((_ROWS, 1), first, device=model.device)
    found = (
        model.eval()
        .generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or first,
            use_cache=True,
        )[:, 1:]
        .cpu()
    )
    for row in found:
        ends = [at for at, token in enumerate(row.tolist()) if token == tokenizer.eos_token_id]
        yield row[: ends[0] + 1] if ends else row
