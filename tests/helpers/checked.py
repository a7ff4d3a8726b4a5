"""Check the emitted code of every Inductor compilation that ladderize makes in this process."""

import functools

from ladderize import compat
from ladderize.backends.emitted import check_emitted

_compile = compat.inductor_compile


@functools.wraps(_compile)
def _compile_and_check(gm, example_inputs, settings, on_source=None):
    def check(source):
        check_emitted(source)
        if on_source is not None:
            on_source(source)

    return _compile(gm, example_inputs, settings, check)


def check_all_emitted_code() -> None:
    compat.inductor_compile = _compile_and_check
