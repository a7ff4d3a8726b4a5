"""Inductor as the tests use it: its emitted code is checked, and its kernels are ATen's.

The order of launches and waits, and races, are the wrapper's, and Inductor makes the wrapper in the
same way for either kind of kernel. Compiling C++ takes a second a kernel, so a test that is about
kernels asks for them with `cpp_kernels`; with `--deep` all have them.
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
    """In this process: check every Inductor compilation of ladderize, and call ATen's kernels.

    What the processor says of its vector instructions is taken to hold: trying it by a compilation
    takes 15 s in a fresh cache. Kernels are compiled here: a pool of compilers for each rank costs
    more. The variables say the same to the processes that a test starts.
    """
    os.environ.update(TORCHINDUCTOR_VEC_ISA_OK="1", TORCHINDUCTOR_COMPILE_THREADS="1")
    compat.inductor_compile = _compile_and_check
    config.cpp.vec_isa_ok = True
    config.compile_threads = 1
    config.fallback_by_default = "LADDERIZE_DEEP" not in os.environ


def cpp_kernels() -> AbstractContextManager[None]:
    return config.patch(fallback_by_default=False)
