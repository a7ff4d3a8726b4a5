"""Keep freed memory in the process, as CUDA's caching allocator does.

glibc maps a buffer of more than 32 MiB afresh on each allocation and unmaps it when freed. Faulting
in its pages took a tenth of a step, and variants differ in the number of such buffers: Inductor
reuses a buffer only if that does not raise the peak, which depends on the order of the program. On
CUDA this costs nothing.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Keep freed memory in this process from now on; return whether the C library supports it."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # TypeError: on Windows, CDLL needs a name
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
