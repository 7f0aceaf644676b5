"""Memory of the C library: freed blocks stay with the process, for the next step of training or sampling to use."""

import ctypes

__all__ = ["keep_freed_memory"]

#: Numbers of the options in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have glibc hand freed blocks of up to 32 MiB out again instead of giving them back to the system.

    The activations of a step are freed in its backward pass and asked for again in the next forward pass. Given back,
    each of their pages is a fault and is zeroed by the kernel, which was 3 to 5 % of a step. Other C libraries are
    left as they are. It holds for the whole process and cannot be taken back: for a program to call, not for a library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, musl, Windows
        return
    mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the largest that it takes
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
