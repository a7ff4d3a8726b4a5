"""Hypothesis settings of this suite: fixed examples, few in CI, because each is a compilation."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

# `--deep` sets it to 5. LADDERIZE_DEEP=45 pytest tests/passes/test_properties.py: 5,000 nets.
DEEP = int(os.environ.get("LADDERIZE_DEEP", "0"))
FACTOR = 4 * DEEP or 1


def examples(count: int) -> Callable[..., Any]:
    """`count` examples, or 20 times as many with `--deep`; every run has the same ones.

    A failing example is shrunk, which takes minutes of compiling, and printed.
    """
    return settings(
        max_examples=count * FACTOR,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
