"""The model loading of `transformers serve`. Seen in transformers 5.23.

Remove when the server accepts a loaded model.
"""

import functools
from collections.abc import Callable
from typing import Any

from transformers.cli.serving.model_manager import ModelManager


def change_loaded_models(change: Callable[[Any], Any]) -> None:
    """Make every server of this process serve `change(model)` instead of the loaded model."""
    load = ModelManager._load_model

    @functools.wraps(load)
    def load_and_change(*args: Any, **kwargs: Any) -> Any:
        return change(load(*args, **kwargs))

    ModelManager._load_model = load_and_change  # type: ignore[method-assign]
