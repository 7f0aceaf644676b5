"""Duplicates: groups of images that are exact or near copies of one another, and one of each.

Exact copies have equal pixels, mirrored or not, and are found by SHA-256. Near copies are found in pairs
(`near_copies`), and pairs make groups by stars: of a connected part, the image with the most near copies (then the
smallest sum of distances) is the centre of a group with all of these; the same goes on with what is left. So every
member is a near copy of one and the same image. Connected parts alone would be chains, in which each link changes a
little and the ends have nothing in common; complete linkage would part two crops of one picture, which overlap too
little to be near copies of each other.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from iet_agc.metrics.near_copies import Pairs, near_copies
from iet_agc.metrics.neighbors import check_images, mirror
from iet_agc.metrics.registration import IDENTITY

__all__ = [
    "MOST_UNASKED",
    "Group",
    "Member",
    "digests",
    "duplicate_groups",
    "group_links",
    "redundant",
    "representatives",
]

#: What a member is to the centre of its group.
Kind = Literal["exact", "mirrored", "near"]

#: Images that are hashed at a time.
_SLICE = 1024

#: Whoever was not asked for near copies looks for them among so many images at most: it takes milliseconds for each.
MOST_UNASKED = 5000


@dataclass(frozen=True)
class Member:
    """An image of a group, and how it lies over the group's centre.

    Attributes:
        image: its index.
        kind: "exact", equal pixel by pixel; "mirrored", equal when mirrored; or "near".
        distance: share of the variance that is left over, see `near_copies`; 0 of exact copies.
        mirrored: whether it shows the centre mirrored.
        zoom: (y, x), how much larger than in the centre things are in it.
        shift: (y, x), how far down and to the right in it the middle of the centre is, as a share of a side.
    """

    image: int
    kind: Kind
    distance: float
    mirrored: bool = False
    zoom: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Group:
    """Copies of one image.

    Attributes:
        members: by ascending index, two or more.
        centre: index of the one that all others were compared with.
    """

    members: tuple[Member, ...]
    centre: int

    @property
    def first(self) -> int:
        """The member that stands first in the set."""
        return self.members[0].image

    @property
    def kind(self) -> Literal["exact", "near"]:
        """Whether all copies are exact, mirrored or not."""
        return "near" if any(member.kind == "near" for member in self.members) else "exact"


def duplicate_groups(
    images: Tensor, near: bool = True, flips: bool = True, on_done: Callable[[float], object] = lambda share: None
) -> list[Group]:
    """Find the images that stand in a set more than once.

    Args:
        images: uint8 (N, C, H, W).
        near: whether near copies count: re-encoded, resized, slightly brighter or darker, cropped or shifted. Which
            changes are found is measured in docs/metrics.md.
        flips: whether mirrored copies count.
        on_done: called with a share of all the work, in [0, 1], for progress.

    Returns:
        Groups of two images or more, by the first image of each; no image is in two. Members and centres do not depend
        on the order of the images, but for which of several equal ones is a centre: the first.

    Raises:
        ValueError: not uint8 (N, C, H, W).
    """
    check_images("images", images)
    hashes = digests(images)
    copies: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(hashes):
        copies[digest].append(index)
    order = sorted(copies)
    firsts = torch.tensor([copies[digest][0] for digest in order], dtype=torch.int64)
    links = _mirrored_links(images, firsts, order) if flips else []
    if near and len(order) > 1:
        links += _near_links(near_copies(images, firsts, flips, on_done))
    images_of = [copies[digest] for digest in order]
    groups = [_group(star, images_of) for star in _stars(len(order), links)]
    return sorted((group for group in groups if len(group.members) > 1), key=lambda group: group.first)


def group_links(total: int, links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of images of which others said that they are copies.

    Args:
        total: how many images.
        links: pairs of their places; one that is given twice, or of an image with itself, adds nothing.

    Returns:
        The members of each group of two or more, ascending; no image is in two.
    """
    pairs = [_Link(one, other, "near", 0.0, False) for one, other in links if one != other]
    return [sorted((centre, *others)) for centre, others in _stars(total, pairs) if others]


def representatives(groups: Sequence[Group], num_images: int) -> Tensor:
    """Which images stay where one of each group does: the first; int64 (M,), ascending."""
    keep = torch.ones(num_images, dtype=torch.bool)
    for group in groups:
        keep[[member.image for member in group.members[1:]]] = False
    return keep.nonzero()[:, 0]


def redundant(groups: Sequence[Group]) -> int:
    """How many images there are beyond one of each group."""
    return sum(len(group.members) - 1 for group in groups)


def digests(images: Tensor) -> list[bytes]:
    """SHA-256 of the pixels of each image, uint8 (N, C, H, W)."""
    parts = (part.flatten(1).contiguous().numpy() for part in images.split(_SLICE))
    return [hashlib.sha256(row).digest() for rows in parts for row in rows]


# -- links between unique images


@dataclass(frozen=True)
class _Link:
    """Two unique images that are copies: how the first lies over the second."""

    first: int
    second: int
    kind: Kind
    distance: float
    mirrored: bool
    placement: tuple[float, ...] = IDENTITY

    def member(self, centre: int, image: int) -> Member:
        """What the one that is not the centre is, seen from the centre; `image` is its index in the set."""
        zoom_y, shift_y, zoom_x, shift_x = self.placement
        if centre == self.first:  # second(u) = first(zoom * u + shift): 0 of the first is where that is 0
            zoom, shift = (1 / zoom_y, 1 / zoom_x), (-shift_y / zoom_y, -shift_x / zoom_x)
        else:  # 0 of the second is at the shift, in the first one mirrored
            zoom, shift = (zoom_y, zoom_x), (shift_y, -shift_x if self.mirrored else shift_x)
        return Member(image, self.kind, self.distance, self.mirrored, zoom, (shift[0] / 2, shift[1] / 2))


def _mirrored_links(images: Tensor, firsts: Tensor, order: Sequence[bytes]) -> list[_Link]:
    """Unique images whose mirror images are others of them."""
    places = {digest: place for place, digest in enumerate(order)}
    turned = [places.get(digest, -1) for some in firsts.split(_SLICE) for digest in digests(mirror(images[some]))]
    return [_Link(one, other, "mirrored", 0.0, True) for one, other in enumerate(turned) if one < other]


def _near_links(pairs: Pairs) -> list[_Link]:
    columns = (pairs.first, pairs.second, pairs.distance, pairs.mirrored, pairs.placement)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [_Link(one, other, "near", distance, turned, tuple(place)) for one, other, distance, turned, place in rows]


# -- links to groups


def _stars(total: int, links: Sequence[_Link]) -> list[tuple[int, dict[int, _Link]]]:
    """Centres and what links the others to them; every unique image stands in one star, alone perhaps.

    Of two links between the same images the first counts, so what is found by hash.
    """
    linked: list[dict[int, _Link]] = [{} for _ in range(total)]
    for link in links:
        linked[link.first].setdefault(link.second, link)
        linked[link.second].setdefault(link.first, link)
    free, stars = set(range(total)), []
    waiting = {place for place in free if linked[place]}
    stars += [(place, {}) for place in sorted(free - waiting)]
    for part in _connected(waiting, linked):
        while part:
            open_ = {place: {other: linked[place][other] for other in linked[place] if other in part} for place in part}
            centre = min(part, key=lambda place: (*_eccentricity(open_[place]), place))
            stars.append((centre, open_[centre]))
            part -= {centre, *open_[centre]}
    return stars


def _eccentricity(links: dict[int, _Link]) -> tuple[int, float]:
    """What is smallest at the centre: less the number of links, then the sum of their distances."""
    return -len(links), sum(links[other].distance for other in sorted(links))


def _connected(places: set[int], linked: Sequence[dict[int, _Link]]) -> list[set[int]]:
    """Connected parts, by their smallest place."""
    parts, seen = [], set[int]()
    for place in sorted(places):
        if place in seen:
            continue
        part, todo = {place}, [place]
        while todo:
            further = linked[todo.pop()].keys() - part
            part |= further
            todo += further
        seen |= part
        parts.append(part)
    return parts


def _group(star: tuple[int, dict[int, _Link]], copies: Sequence[list[int]]) -> Group:
    """All images of a star, exact copies of its unique images among them."""
    centre, links = star
    members = [Member(image, "exact", 0.0) for image in copies[centre]]
    for other, link in links.items():
        members += [link.member(centre, image) for image in copies[other]]
    return Group(tuple(sorted(members, key=lambda member: member.image)), copies[centre][0])
