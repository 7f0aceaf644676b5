"""Captions: what is one, and images that share one."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TypeGuard

from iet_agc.data.image_set import ImageSet
from iet_agc.runtime.errors import UserError

__all__ = ["captioned", "check_texts", "in_turn", "is_caption", "texts_of"]


def is_caption(value: object) -> TypeGuard[str]:
    """Whether it is text; JSON can hold halves of characters, which are none."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def check_texts(prompts: Sequence[str]) -> None:
    """Refuse prompts that no model can be told.

    Raises:
        UserError: one is empty, or has bytes that are no UTF-8, which a shell passes on as they are.
    """
    if odd := [text for text in prompts if text.strip() and not is_caption(text)]:
        raise UserError(f"prompt {odd[0]!a} is not UTF-8: write it so")
    if not all(map(str.strip, prompts)):
        raise UserError("a prompt is empty: say what to draw")


def texts_of(value: object, where: str) -> tuple[str, ...]:
    """One or more captions of an image.

    Args:
        value: from a file: a text, or a list of them.
        where: it stands, for people.

    Raises:
        UserError: it is none, or one is empty.
    """
    given = value if isinstance(value, list | tuple) else [value]
    texts = tuple(text for text in given if is_caption(text))
    if not texts or len(texts) < len(given):
        raise UserError(f"{where} has no caption, or one that is empty or no text: give it a text, or a list of them")
    return texts


def captioned(images: ImageSet, caption: str) -> ImageSet:
    """Images that have no captions, each with this one.

    Args:
        images: where `caption` has {class}, each with a file in a subfolder, whose name stands in its place.
        caption: the text.

    Raises:
        UserError: they have captions.
    """
    if images.captions is not None:
        raise UserError(f"{images.name} has captions, so data.caption has no effect on it: leave it out")
    if "{class}" not in caption:
        return replace(images, captions=((caption,),) * len(images))
    folders = [PurePath(file).parts[0] for file in images.files or ()]
    return replace(images, captions=tuple((caption.replace("{class}", folder),) for folder in folders))


def in_turn(captions: Sequence[Sequence[str]], first: bool) -> list[str]:
    """The first caption of each image, in their order, then the second ones, and so on; `first`: no others."""
    turns = range(1 if first else max(map(len, captions), default=0))
    return [some[turn] for turn in turns for some in captions if turn < len(some)]
