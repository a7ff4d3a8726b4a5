"""Hypothesis settings of this suite: few, fixed examples, for each is a compilation."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

PHASES = [Phase.generate, Phase.shrink] if "SHRINK" in os.environ else [Phase.generate]


def examples(count: int) -> Callable[..., Any]:
    """`count` examples, the same in every run; a failing one is printed.

    With SHRINK=1 in the environment it is made as small as it can be first: minutes of compiling.
    """
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=True,
        phases=PHASES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
