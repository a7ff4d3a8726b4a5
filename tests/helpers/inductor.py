"""Inductor settings of the tests: emitted code is checked, and kernels are ATen's.

The wrapper determines races and the order of launches and waits, and is the same for both kinds of
kernels. Compiling C++ takes a second per kernel, so only tests of kernels use `cpp_kernels`; with
`--deep` all tests do.
"""

import functools
import os
from contextlib import AbstractContextManager

from torch._inductor import config

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


def prepare_inductor() -> None:
    """In this process, check every Inductor compilation of ladderize, and call ATen's kernels.

    The CPU's vector instructions are not tested by a compilation, which takes 15 s with a fresh
    cache. Kernels are compiled in this process, because a compiler pool per rank costs more.
    Environment variables set the same for the processes that a test starts.
    """
    os.environ.update(TORCHINDUCTOR_VEC_ISA_OK="1", TORCHINDUCTOR_COMPILE_THREADS="1")
    compat.inductor_compile = _compile_and_check
    config.cpp.vec_isa_ok = True
    config.compile_threads = 1
    config.fallback_by_default = "LADDERIZE_DEEP" not in os.environ


def cpp_kernels() -> AbstractContextManager[None]:
    return config.patch(fallback_by_default=False)
