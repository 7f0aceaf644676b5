"""What torchrun tells a process that it starts, without torch: who has to know before torch is loaded."""

import os

__all__ = ["is_first", "is_one_of_several", "local_rank"]


def is_one_of_several() -> bool:
    """Whether torchrun started more processes than this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this is the process that speaks for all: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def local_rank() -> int:
    """The place of this process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))
