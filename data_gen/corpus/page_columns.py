"""Columns of text in the picture of a page: a white gap in its middle, and text on both sides of it."""

from typing import Any

# Of the picture every so many dots are looked at.
_STEP = 8
# A dot is ink if it is so much darker than the commonest grey.
_CONTRAST = 60
# Rows of dots with less ink are between lines, or hold dirt.
_LINE = 0.03
# Of the other rows: at most this share has some in the gap, at least this share on each side of it.
_IN_GAP, _BESIDE = 0.05, 0.3
# Width of the gap at least, and where its middle may be, as shares of the width of what is printed.
_GAP, _FROM, _TO = 0.015, 0.2, 0.8
_MOST_CUTS = 3


def split_columns(width: int, height: int, grey: bytes) -> list[tuple[int, int, bytes]]:
    """(width, height, rows of grey bytes) of each column, from left to right; of a page without columns, itself."""
    import numpy as np

    picture_hw = np.frombuffer(grey, np.uint8).reshape(height, width)
    parts = _split(picture_hw, _MOST_CUTS)
    return [(part.shape[1], height, part.tobytes()) for part in parts]


def _split(picture_hw: Any, cuts: int) -> list[Any]:
    gap = _gap(picture_hw) if cuts else None
    if gap is None:
        return [picture_hw]
    return [part for side in (picture_hw[:, :gap], picture_hw[:, gap:]) for part in _split(side, cuts - 1)]


def _gap(picture_hw: Any) -> int | None:
    """Where the middle of the widest gap is; None where there is none."""
    import numpy as np

    small_hw = picture_hw[::_STEP, ::_STEP].astype(int)
    ink_hw = small_hw < np.bincount(small_hw.ravel()).argmax() - _CONTRAST
    ink_hw = ink_hw[ink_hw.mean(axis=1) > _LINE]
    printed_w = np.flatnonzero(ink_hw.mean(axis=0) > _IN_GAP) if len(ink_hw) else []
    if not len(printed_w):
        return None
    left, right = printed_w[0], printed_w[-1] + 1
    size = right - left
    best, widest = None, max(2.0, _GAP * size)
    start = None
    for x, empty in enumerate([*(ink_hw[:, left:right].mean(axis=0) <= _IN_GAP), False], left):
        if empty and start is None:
            start = x
        elif not empty and start is not None:
            middle, sides = (start + x) // 2, (ink_hw[:, left:start], ink_hw[:, x:right])
            if x - start >= widest and _FROM <= (middle - left) / size <= _TO:
                if all((side.mean(axis=1) > _LINE).mean() >= _BESIDE for side in sides):
                    best, widest = middle * _STEP, x - start
            start = None
    return best
