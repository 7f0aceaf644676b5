"""Which weights of a module are trained, and copies that share with the original those that are not.

A parameter that needs no gradient is frozen: it is in no optimizer, average or bundle, and on each device once.
"""

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

__all__ = ["copy_trained", "names_of_trained"]


def copy_trained(module: M) -> M:
    """A deep copy whose frozen parameters are the module's own, so that many copies hold them once."""
    frozen = {id(parameter): parameter for parameter in module.parameters() if not parameter.requires_grad}
    return copy.deepcopy(module, frozen)


def names_of_trained(module: nn.Module) -> set[str]:
    """Names of what a module's state dict holds beside frozen parameters: trained ones, and buffers."""
    parameters = module.named_parameters(remove_duplicate=False)
    return module.state_dict().keys() - {name for name, parameter in parameters if not parameter.requires_grad}
