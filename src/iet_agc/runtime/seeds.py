"""Random generators keyed on what is drawn, never on who draws it or when.

The noise of step 7 of member 2 is the same in every process, after every restart.
"""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import torch

__all__ = ["generator", "kept_generators", "key_of", "seeded"]


def key_of(*identity: str | int) -> int:
    """Hash an identity such as ("step", seed, member, step) into a seed of 63 bits."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in identity)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*identity: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one identity.

    Args:
        identity: what is drawn, first a word, then numbers: ("step", seed, member, step).
        device: where the numbers are drawn; the numbers themselves differ between kinds of device.
    """
    return torch.Generator(device).manual_seed(key_of(*identity))


@contextmanager
def kept_generators(device: torch.device | str = "cpu") -> Generator[None]:
    """A context after which torch's global generators, of the CPU and of a device, stand where they stood."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def seeded(*identity: str | int, device: torch.device | str = "cpu") -> Generator[None]:
    """A context in which torch's global generators, of the CPU and of a device, draw for one identity.

    For what takes no generator, such as the initialisation of layers, and dropout on a GPU. Those of the caller stand
    where they stood afterwards.

    Args:
        identity: see `generator`.
        device: the CUDA device whose generator is seeded as well; "cpu" is the CPU's alone.
    """
    device = torch.device(device)
    with kept_generators(device):
        torch.default_generator.manual_seed(key_of(*identity))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(key_of(*identity))
        yield
