"""Let freed memory stay with the process, as CUDA's caching allocator does.

glibc takes a buffer of more than 32 MiB from the system and gives it back, every time: its pages
are made anew in each step, which took a tenth of one. How many there are differs between variants:
Inductor takes a buffer again for another one where that does not raise the peak, and the order of
a program decides where. On CUDA none of this costs anything.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """From now on, in this process; whether its C library can: glibc's can, others' need not."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # TypeError: Windows has no library without name
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
