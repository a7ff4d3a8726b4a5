"""Run `transformers serve` with ladders.

    transformers serve DIR --continuous-batching                                     standard
    python -m ladderize.integrations.transformers serve DIR --continuous-batching    ladder
                                                  --ladderize '{"layers": "last:50%"}'

The command line is that of transformers with one more option. Models become ladders when the server
loads them; `frontends/continuous_batching.py` supports its continuous batching.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ladderize import compat
from ladderize.config.options import LadderConfig
from ladderize.frontends.checkpoints.own_entry import own_entry
from ladderize.frontends.compile import compile
from ladderize.frontends.continuous_batching import TRIED

OPTION = "--ladderize"


def main(arguments: Sequence[str]) -> None:
    """Run the command line of transformers, serving models as ladders.

    Args:
        arguments: arguments of `transformers`, optionally with `--ladderize` and the options of
            `ladderize.compile` as JSON.

    Raises:
        LadderError: options are invalid or contradict a checkpoint.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(OPTION, type=json.loads, default={})
    ours, theirs = parser.parse_known_args(arguments)
    LadderConfig.from_options(ours.ladderize)
    import transformers
    from transformers.cli.transformers import app

    from ladderize.compat.serving import change_loaded_models

    compat.warn_if_untried("transformers", transformers.__version__, TRIED)
    change_loaded_models(lambda model: as_ladder(model, ours.ladderize))
    app(theirs, prog_name="transformers")


def as_ladder(model: Any, given: Mapping[str, Any]) -> Any:
    """Compile `model` as the ladder of its checkpoint or of `given`, and log that.

    Raises:
        LadderError: the two contradict each other.
    """
    from transformers.utils import logging

    entry = own_entry(model)
    options = dict(given) if entry is None else entry.fill(given)
    logging.get_logger("transformers.ladderize").warning(
        "%s is served as a ladder: %s", model.name_or_path, options or "all of its blocks"
    )
    return compile(model, **given)


if __name__ == "__main__":
    main(sys.argv[1:])
