"""Random generators keyed on what is drawn, never on who draws it or when.

The noise of step 7 of member 2 is the same in every process, after every restart.
"""

import hashlib

import torch

__all__ = ["generator", "key_of"]


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
