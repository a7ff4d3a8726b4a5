"""A checkpoint that is a ladder says so itself: `"ladderize": {"layers": …}` in config.json."""

from collections.abc import Mapping
from typing import Any

from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError

KEY = "ladderize"


def own_options(config: Any) -> dict[str, Any] | None:
    """Of a model's Hugging Face configuration; None where it does not say that it is a ladder."""
    found = getattr(config, KEY, None)
    return None if found is None else dict(found)


def merged_options(
    engine: str, own: Mapping[str, Any] | None, given: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """The options of a checkpoint, and those that an engine was given for it.

    Args:
        engine: its name, for the error.
        own: what the checkpoint says; None where it does not say anything.
        given: what the engine was started with.
        place: where it was given, such as an option of the engine.

    Raises:
        LadderError: the two contradict each other, or are not options of a ladder.
    """
    own = own or {}
    differing = [
        Blocker(f"{name}={given[name]!r} is asked for, and the checkpoint is of {own[name]!r}")
        for name in own
        if name in given and given[name] != own[name]
    ]
    if differing:
        raise LadderError(
            f"{engine} is asked for another ladder than the checkpoint is:",
            differing,
            f"leave these out of {place}: config.json says them",
        )
    options = {**own, **given}
    LadderConfig.from_options(options)
    return options
