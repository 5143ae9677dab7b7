"""How a document longer than a model reads is cut: windows that overlap, in which every token is scored once.

A document is s = [begin token, t1 .. tn]. The first window reads s[0 : L] and scores t1 .. tL. Every further one ends
`stride` tokens later, reads the L tokens before its end, and scores the stride tokens that no window before it scored:
each with at least L - stride tokens before it. The last one ends with the document and reads L tokens too. With
stride = L windows share nothing but the token that the first prediction needs.
"""

from typing import NamedTuple


class Window(NamedTuple):
    """Reads s[start : stop] and predicts s[start + 1 : stop + 1]; what counts are the last `scored` of them."""

    start: int
    stop: int
    scored: int


def cut_windows(targets: int, seq_len: int, stride: int) -> list[Window]:
    """The windows of a document of `targets` tokens, its begin token not counted.

    Args:
      seq_len: tokens that a window reads, at most. stride: 1 .. seq_len, tokens by which each ends later.
    """
    if not 1 <= stride <= seq_len:
        raise ValueError(f"stride must lie in 1 .. {seq_len}, got {stride}")
    out: list[Window] = []
    scored = 0
    while scored < targets:
        stop = min(targets, scored + stride if out else seq_len)
        out.append(Window(max(0, stop - seq_len), stop, stop - scored))
        scored = stop
    return out
