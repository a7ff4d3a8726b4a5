"""Freed memory stays with a rank, measured by its page faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from ladderize.tools.bench.memory import keep_freed_memory

assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def touch(size=64 << 20):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = (64 << 20) // 4096


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is asked to")
def test_a_large_buffer_is_mapped_once():
    line = [sys.executable, "-c", PROGRAM]
    new_pages = int(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    assert new_pages < PAGES // 10
