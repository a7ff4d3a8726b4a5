"""The standard model and its tokenizer, from a local folder. Nothing is fetched.

DIR/config.json, *.safetensors, tokenizer.json    as save_pretrained writes them
DIR/model.gguf                                    one file alone, dequantized; needs `gguf`
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ladderize.errors import LadderError


@dataclass(frozen=True)
class Standard:
    """A model as it was loaded, and how its checkpoint has it.

    Attributes:
        model, tokenizer: of transformers.
        dtype: of the weights in the checkpoint.
        use_cache: what the configuration says; Trainer changes it.
    """

    model: Any
    tokenizer: Any
    dtype: torch.dtype
    use_cache: bool


def load_standard(folder: Path, dtype: torch.dtype | None) -> Standard:
    """The causal language model in `folder`, and its tokenizer.

    Args:
        folder: with the files of transformers, or with one `.gguf`.
        dtype: of the weights; None: that of the checkpoint.

    Raises:
        LadderError: it is not there, a package is missing, or transformers cannot load it.
    """
    if find_spec("transformers") is None:
        raise LadderError(f"{folder} needs transformers.", cure="pip install 'ladderize[demo]'")
    if not folder.is_dir():
        raise LadderError(
            f"{folder}: no such file or folder.", cure="nothing is fetched from a hub"
        )
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # as is transformers
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # trust_remote_code=None would ask on a terminal whether to run the folder's code.
    safe = {"local_files_only": True, "trust_remote_code": False}
    local: dict[str, Any] = {**safe, **_gguf_file(folder)}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **local)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", **local, **_how_to_read("gguf_file" in local)
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise LadderError(f"{folder} cannot be loaded as a causal LM: {reason}") from error
    use_cache = bool(getattr(config, "use_cache", True))
    return Standard(model, tokenizer, config.dtype or model.dtype, use_cache)


def _how_to_read(is_gguf: bool) -> dict[str, Any]:
    """No pickles; and the weights of a .gguf as plain tensors, which may be trained."""
    if not is_gguf:
        return {"use_safetensors": True}
    from transformers.utils import quantization_config

    packed = getattr(
        quantization_config, "GgufConfig", None
    )  # transformers 5.23: keeps them packed
    return {} if packed is None else {"quantization_config": packed(dequantize=True)}


def _gguf_file(folder: Path) -> dict[str, str]:
    """The option of transformers that names the file, if the folder holds one and nothing else."""
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if (folder / "config.json").is_file() or not found:
        return {}
    if len(found) > 1:
        raise LadderError(
            f"{folder} holds several models: {', '.join(found)}.", cure="leave one of them there"
        )
    if find_spec("gguf") is None:
        raise LadderError(f"{folder / found[0]} needs the package gguf.", cure="pip install gguf")
    return {"gguf_file": found[0]}
