"""What the sections of the settings have in common."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel, frozen=True):
    """A part of the settings: no unknown names, no change after it is made, no infinities, which JSON has not."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
