"""Text from token ids as they come."""

from collections.abc import Sequence
from typing import Any

from mmed_jax.data.plain_text import decode_after, joins_plainly


class TextStream:
    """Text from ids as they come, never half a character: a token may hold a part of one (byte-level vocabulary).

    No id is decoded again once its text is out, but for the last few where a vocabulary makes text depend on what
    stands before.

    `before`: ids that they follow, whose text is known.
    """

    def __init__(self, tok: Any, before: Sequence[int] = ()):
        self._tok, self._plain = tok, joins_plainly(tok)
        self._open: list[int] = []  # ids whose text is not out
        self._before = list(before)

    def push(self, token: int) -> str:
        """The text that `token` completes, "" while a character is open."""
        self._open.append(token)
        text = self._text()
        return "" if text.endswith("\ufffd") else self._take(text)

    def flush(self) -> str:
        """What is left when no more tokens come; an open character shows as U+FFFD."""
        return self._take(self._text())

    def _text(self) -> str:
        if self._plain:
            return self._tok.decode(self._open, skip_special_tokens=True)
        return decode_after(self._tok, self._before, self._open)

    def _take(self, text: str) -> str:
        # Such decoders drop the space that a text begins with: any text in front will do, of blanks and control tokens
        # nothing would be left.
        self._before = self._open if text.strip() else self._before + self._open
        self._open = []
        return text
