"""A network always sees as many rows.

Kernels round differently for other numbers of rows, and what comes of an image, a seed or a text must not depend on its
company.
"""

from collections.abc import Iterator

__all__ = ["fixed_rows"]


def fixed_rows(total: int, rows: int) -> Iterator[tuple[list[int], int]]:
    """The places 0 .. total - 1 in batches of one size; the last batch is filled up with its own first place.

        >>> list(fixed_rows(5, 3))
        [([0, 1, 2], 3), ([3, 4, 3], 2)]

    Args:
        total: how many items there are.
        rows: how many a network sees at once, which must depend on nothing but the size of an item and the kind of
            device.

    Yields:
        The places of a batch, `rows` of them, and how many are new; what comes of the others is to be dropped.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, not {rows}")
    for start in range(0, total, rows):
        count = min(rows, total - start)
        yield [*range(start, start + count), *[start] * (rows - count)], count
