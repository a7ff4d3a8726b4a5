"""Load the standard model and its tokenizer from a local folder. Nothing is downloaded.

DIR/config.json, *.safetensors, tokenizer.json    as save_pretrained writes them
DIR/model.gguf                                    a single file, dequantized; needs `gguf`
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ladderize.errors import LadderError


@dataclass(frozen=True)
class Standard:
    """A loaded model, with properties of its checkpoint.

    Attributes:
        model, tokenizer: transformers model and tokenizer.
        dtype: dtype of the weights in the checkpoint.
        use_cache: value in the configuration, which Trainer changes.
    """

    model: Any
    tokenizer: Any
    dtype: torch.dtype
    use_cache: bool


def load_standard(folder: Path, dtype: torch.dtype | None) -> Standard:
    """The causal language model in `folder`, and its tokenizer.

    Args:
        folder: folder with the files of transformers, or with one `.gguf` file.
        dtype: dtype of the weights; None for that of the checkpoint.

    Raises:
        LadderError: the folder does not exist, a package is missing, or transformers cannot load
            the model.
    """
    if find_spec("transformers") is None:
        raise LadderError(f"{folder} needs transformers.", cure="pip install 'ladderize[demo]'")
    if not folder.is_dir():
        raise LadderError(
            f"{folder}: no such file or folder.", cure="name a local folder: nothing is downloaded"
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
    """Options that refuse pickles, and load the weights of a .gguf file as trainable tensors."""
    if not is_gguf:
        return {"use_safetensors": True}
    from transformers.utils import quantization_config

    packed = getattr(
        quantization_config, "GgufConfig", None
    )  # transformers 5.23: keeps them packed
    return {} if packed is None else {"quantization_config": packed(dequantize=True)}


def _gguf_file(folder: Path) -> dict[str, str]:
    """The option `gguf_file`, if the folder has a .gguf file and no config.json."""
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if (folder / "config.json").is_file() or not found:
        return {}
    if len(found) > 1:
        raise LadderError(
            f"{folder} holds several models: {', '.join(found)}.", cure="keep only one of them"
        )
    if find_spec("gguf") is None:
        raise LadderError(f"{folder / found[0]} needs the package gguf.", cure="pip install gguf")
    return {"gguf_file": found[0]}
