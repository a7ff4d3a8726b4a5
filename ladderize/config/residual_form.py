"""The option `variant`: the form of the residual stream.

    x1 = x0 + attention(x0),  x2 = x1 + mlp(x1)      the standard model
    "ladder"      x2 = x1 + mlp(x0)                  every branch reads an earlier stream value
    "parallel"    x2 = x1 + mlp(x0)                  the next layer reads x2
    "desync:2"    x1[r] = x0 + attention[r](x0)      each rank r has its own stream;
                  x2 = sum of x1[r] / ranks + mlp[r](x1[r])      every second block is reduced

"parallel" is the form of GPT-J and PaLM (arXiv 2204.02311, Section 2). "desync:n" is the desync
residual of arXiv 2501.06589, as in `gpt_desync_TP.py` of the authors' inference code.
"""

import re
from collections.abc import Iterator

from ladderize.errors import nearest

PLAIN = "ladder"
PARALLEL = "parallel"
_DESYNC = re.compile(r"desync:([1-9]\d{0,3})")


def desync_period(variant: object) -> int:
    """`n` of "desync:n", which reduces every n-th block; 0 for other variants."""
    found = _DESYNC.fullmatch(variant) if isinstance(variant, str) else None
    return int(found[1]) if found else 0


def variant_problems(
    variant: object, staleness: object, connectivity: object, chosen: object = None
) -> Iterator[str]:
    """Problems with the option `variant`, alone or together with others.

    Args:
        variant, staleness, connectivity: values of these options.
        chosen: value of `layers` or `blocks`.
    """
    if variant == PLAIN:
        return
    period = desync_period(variant)
    if variant != PARALLEL and period < 2:
        yield (
            f"variant={variant!r} is neither {PLAIN!r} nor {PARALLEL!r} nor 'desync:n' with n of "
            f"at least 2{nearest(variant, (PLAIN, PARALLEL))}"
        )
        return
    if staleness != 1:
        yield f"staleness={staleness!r} goes with variant={PLAIN!r}, not with {variant!r}"
    if connectivity != PLAIN:
        yield f"connectivity={connectivity!r} goes with variant={PLAIN!r}, not with {variant!r}"
    if period and chosen is not None:
        yield f"layers= and blocks= do not go with variant={variant!r}, which takes every block"
