"""A preset with other images than its own: planting and description of the preset do not outlive them."""

from collections.abc import Collection, Mapping

from iet_agc.config.data_settings import DATA_OPTIONS, IMAGE_SETS
from iet_agc.runtime.errors import UserError

__all__ = ["changed_images", "check_planting", "described_by_changes", "is_another_set"]


def changed_images(own: Mapping[str, object], data: Mapping[str, object]) -> dict[str, object]:
    """Settings of section data that change which images are trained on, but for the seed that shuffles them."""
    kind = IMAGE_SETS.get(str(data.get("name")))
    never = {"download", "cache", "seed"} | (set() if kind and kind.is_what_lies_there else {"root", "revision"})
    return {n: data.get(n) for n in DATA_OPTIONS if n not in never and own.get(n) != data.get(n)}


def is_another_set(own: Mapping[str, object], data: Mapping[str, object]) -> bool:
    """Whether two sections data, plain values, name different image sets."""
    return not changed_images(own, data).keys().isdisjoint({"name", "root", "subset"})


def check_planting(name: str, own: Mapping[str, object], data: Mapping[str, object], given: Collection[str]) -> None:
    """Refuse to plant another image set as a preset plants its own, without being asked."""
    count, copies = data.get("planted_images", 0), data.get("planted_copies", 1)
    if not isinstance(count, int) or not isinstance(copies, int):
        return  # no setting, which is told when it is read
    if "planted_images" not in given and count > 0 and copies > 1:
        change = next(iter(f"data.{key} {value}" for key, value in changed_images(own, data).items()))
        raise UserError(
            f"{name} plants {count} of its own images {copies} times each, and {change} is another image set: set "
            f"data.planted_images, 0 plants none of it and {count} as many"
        )


def described_by_changes(name: str, own: Mapping[str, object], data: Mapping[str, object]) -> str:
    """The description of a preset with other images: what changed."""
    changes = (f"data.{key} {'none' if value is None else value}" for key, value in changed_images(own, data).items())
    return f"As {name}, but {', '.join(changes)}"
