"""Freed memory stays with the process."""

import ctypes
import os
import subprocess
import sys

import pytest

#: torch asks the C library for memory as bytearrays do, and takes seconds to import.
FAULTS = """
import resource
from iet_agc.runtime.malloc import keep_freed_memory
if {keep}:
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [bytearray(b"1") * 2**22 for _ in range(24)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min([faults() for _ in range(4)][1:]))
"""


def faults(keep: bool) -> int:
    # by itself glibc may or may not keep blocks of this size: it is told not to
    command, told = [sys.executable, "-c", FAULTS.format(keep=keep)], os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(command, env=told, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_a_step_finds_its_memory_again():
    assert faults(keep=True) < 100 < faults(keep=False)
