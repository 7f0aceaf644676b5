"""Processes: every function here does the obvious thing when there is only one.

The only module that imports `torch.distributed`.
"""

import re
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import only_one
from iet_agc.runtime.torchrun import is_one_of_several, local_rank

T = TypeVar("T")

#: A process with few members waits this long for one with more; torchrun ends the others where one dies.
_PATIENCE = timedelta(days=30)

#: What gloo and nccl say of a process that is gone.
_GONE = re.compile(r"(closed|reset) by peer|remote process exited|Broken pipe|Socket closed")

__all__ = [
    "Replicas",
    "all_rows",
    "alone_in",
    "barrier",
    "broadcast_state",
    "choose_device",
    "gather",
    "processes",
    "rank",
    "replicas_of",
    "size",
]


def choose_device(name: str) -> torch.device:
    """The device of this process.

    Args:
        name: "cpu", "cuda", or "auto" for cuda where there is one. With several processes on a
            machine, each takes the GPU of its local rank.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is 'cuda', but torch sees no GPU here: use 'auto' or 'cpu'")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


@contextmanager
def processes(device: torch.device) -> Generator[None]:
    """Join the processes that `torchrun` started, if it did, and leave them at the end."""
    if not is_one_of_several():
        yield
        return
    # Members rest on the host, so states are broadcast from there also where gradients travel by nccl.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # where nccl looks for its device
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Keep other programs out of a folder, for all processes of this one; see `files.only_one`."""
    return only_one(folder) if rank() == 0 else nullcontext()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def _together() -> Generator[None]:
    """Within it, a process waits for others.

    Raises:
        UserError: one of them has ended, such as by a kill.
    """
    try:
        yield
    except RuntimeError as error:
        if not _GONE.search(str(error)):
            raise
        raise UserError(
            "another process of this run has ended: start the same command again, which goes on from what is saved"
        ) from error


def barrier() -> None:
    """Wait until every process is here.

    Raises:
        UserError: one of them has ended; so do all functions here that wait for others.
    """
    if size() > 1:
        with _together():
            dist.barrier()


def broadcast_state(state: dict[str, Tensor], source: int) -> dict[str, Tensor]:
    """The state dict of process `source`, on every process.

    Args:
        state: on the source, what to send; elsewhere, any state of the same names, shapes and dtypes.
        source: rank that sends.

    Returns:
        `state` itself on the source; fresh tensors elsewhere.
    """
    if size() == 1:
        return state
    received = state if rank() == source else {name: torch.empty_like(tensor) for name, tensor in state.items()}
    with _together():
        for name in sorted(received):
            dist.broadcast(received[name], src=source)
    return received


def gather(value: T) -> list[T]:
    """The value of every process, in the order of ranks, on every process."""
    if size() == 1:
        return [value]
    values: list[T | None] = [None] * size()
    with _together():
        dist.all_gather_object(values, value)
    return values  # pyright: ignore[reportReturnType]


def all_rows(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of ranks, bitwise, (size() * n, ...), on every process.

    Args:
        rows: of this process, (n, ...), n the same on all. No host waits for a device that does the gathering.
    """
    if size() == 1:
        return rows
    whole = rows.new_empty((size(), *rows.shape))
    dist.all_gather([*whole], rows.contiguous())
    return whole.flatten(0, 1)


@dataclass(frozen=True)
class Replicas:
    """The processes that train one member together, each on some rows of every batch.

    Attributes:
        index: which of them this process is.
        count: how many there are.
        group: their process group; None when there is one.
    """

    index: int = 0
    count: int = 1
    group: object | None = None

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that are this process's: contiguous, balanced to one."""
        bounds = [batch_size * i // self.count for i in (self.index, self.index + 1)]
        return slice(*bounds)

    def whole(self, part: Tensor, batch_size: int) -> Tensor:
        """Join the parts (rows,) of all replicas into (B,), bitwise the same on each."""
        if self.count == 1:
            return part
        whole = part.new_zeros(batch_size)
        whole[self.rows(batch_size)] = part
        self._sum(whole)
        return whole

    def any(self, flag: bool) -> bool:
        """Whether it is so on some replica. All of them ask together; no device is waited for."""
        if self.count == 1:
            return flag
        told = torch.tensor(int(flag))
        self._sum(told)
        return bool(told)

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Add up the gradients of all replicas, in place, as one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._sum(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def _sum(self, tensor: Tensor) -> None:
        with _together():
            dist.all_reduce(tensor, group=self.group)  # pyright: ignore[reportArgumentType]


def replicas_of(num_members: int, batch_size: int) -> Replicas:
    """This process's place among those that train the same member.

    Member m is trained by the ranks r with r % num_members == m; alone, where there are no more
    processes than members. Every process must call this, since groups are made together.

    Args:
        num_members: how many members the run has.
        batch_size: of one member; each replica needs a row of it.

    Raises:
        UserError: more replicas than rows.
    """
    if size() <= num_members:
        return Replicas()
    teams = [list(range(member, size(), num_members)) for member in range(num_members)]
    if len(teams[0]) > batch_size:
        raise UserError(
            f"{len(teams[0])} processes cannot share batches of {batch_size}: start at most {num_members * batch_size} "
            "processes, or raise train.batch_size"
        )
    groups = [dist.new_group(team, timeout=_PATIENCE) for team in teams]
    member = rank() % num_members
    return Replicas(teams[member].index(rank()), len(teams[member]), groups[member])
