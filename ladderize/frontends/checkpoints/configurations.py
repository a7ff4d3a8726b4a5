"""Configurations of transformers models in local folders, and their model classes.

config.json ── architectures[0], or the causal LM of its model_type ── class
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ladderize.compat.json_files import read_json
from ladderize.errors import LadderError

PAPERS_MODEL = "llamaLadder"
"""The `model_type` of the published models of arXiv 2501.06589."""


def read_config(path: Path) -> Any:
    """Read the configuration in a file, or in a folder's `config.json`.

    Raises:
        LadderError: the file does not exist or is not a configuration.
    """
    if find_spec("transformers") is None:
        raise LadderError(f"{path} needs transformers.", cure="pip install 'ladderize[demo]'")
    if not path.exists():
        raise LadderError(f"{path}: no such file or folder.", cure="nothing is fetched from a hub")
    from transformers import AutoConfig, LlamaConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # as is transformers
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        # trust_remote_code=None would ask on the terminal whether to run the folder's code.
        kind = LlamaConfig if _is_papers(path) else AutoConfig
        return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise LadderError(
            f"transformers does not know the configuration {path}: {reason}"
        ) from error


def _is_papers(path: Path) -> bool:
    """Whether the model class is `LlamaLadderForCausalLM`, published by the paper's authors.

    This is Llama, with the same weight names, and `ladder_layers`. transformers does not know it.
    """
    file = path / "config.json" if path.is_dir() else path
    data = read_json(file, "configuration") if file.is_file() else None
    return isinstance(data, dict) and data.get("model_type") == PAPERS_MODEL


def model_class(config: Any) -> Any:
    """The class that a configuration names, or else the causal LM of its model type.

    Raises:
        LadderError: transformers knows neither.
    """
    import transformers

    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    known = transformers.AutoModelForCausalLM._model_mapping
    if type(config) in known:
        return known[type(config)]
    raise LadderError(
        f"This {config.model_type} configuration does not name a model class.",
        cure='name the class in it: "architectures": ["BertForMaskedLM"]',
    )


def new_model(config: Any, dtype: torch.dtype | None = None) -> Any:
    """Build the model of `config` in eval mode, with initialized weights.

    Args:
        config: transformers configuration.
        dtype: dtype of the weights; None uses that of `config`.

    Raises:
        LadderError: transformers has no class for `config`, or cannot build it.
    """
    kind = model_class(config)
    try:
        return kind._from_config(config, dtype=dtype or config.dtype or torch.float32).eval()
    except (ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise LadderError(
            f"{kind.__name__} cannot be built from the configuration: {reason}"
        ) from error
