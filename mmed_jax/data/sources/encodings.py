"""Text of published files: UTF-8, an encoding that the user names, or one clear line that guesses which it is.

Nothing is guessed silently: bytes of CP949, Shift-JIS, EUC-JP, Big5 or Windows-1252 are valid GB18030 as well, and give
text that only a reader of it knows to be wrong.
"""

import codecs
import re
from typing import Self

from mmed_jax.common.errors import UserError
from mmed_jax.data.languages.scripts import SCRIPTS, SCRIPTS_OF, common_chinese

# Codecs that Python calls text encodings and that no file of text is in.
_NO_FILES = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "mbcs", "oem", "utf-7"}
# By language, the likeliest first.
_LIKELY = {
    "ko": ("cp949",),
    "ja": ("cp932", "euc_jp"),
    "zh": ("gb18030", "big5"),
    "ru": ("cp1251", "koi8-r", "cp866", "iso8859-5"),
    "en": ("cp1252", "mac_roman"),
    "fr": ("cp1252", "mac_roman"),
    "es": ("cp1252", "mac_roman"),
}
# Encodings that need no byte above 0x7f: what they begin their own letters with.
_SEVEN_BIT = {
    "iso2022_jp": re.compile(rb"\x1b\$[@B]|\x1b\([IJ]|\x1b\$\([DOQ]"),
    "iso2022_kr": re.compile(rb"\x1b\$\)C"),
    "hz": re.compile(rb"~\{(?:[\x21-\x77][\x21-\x7e])+~\}"),
}
_WIDE = ("utf-16-le", "utf-16-be")
_LOOKED_AT = 1 << 20


def known_encoding(name: str, flag: str = "--encoding") -> str:
    """`name` when it is an encoding of text files. Raises UserError."""
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        found = None
    if found is None or not found._is_text_encoding or found.name.replace("_", "-") in _NO_FILES:
        raise UserError(
            f"{flag}={name}: no encoding of text files; examples: cp949, cp932, euc_jp, gb18030, big5, cp1252, cp1251"
        )
    return name


class WrongEncoding(UserError):
    """Text in another encoding than was named, or than UTF-8 where none was; the hint ends in the flag that names it.

    Args:
      problem: up to the flag. encoding, after: its value, and what stands behind it.
    """

    def __init__(self, problem: str, encoding: str, after: str = "", *, place: str) -> None:
        self.encoding, self.after = encoding, after
        super().__init__(problem, place=place, hint=f"--encoding={encoding}{after}")

    def for_flag(self, flag: str) -> Self:
        """The same failure where another flag names the encoding."""
        return self.with_hint(f"{flag}={self.encoding}{self.after}")


def decode(
    data: bytes, where: str, encoding: str = "", *, languages: tuple[str, ...] = (), gb18030: bool = False
) -> str:
    """The bytes of a whole file as text, without a byte-order mark.

    Args:
      encoding: what the user says it is; "" for UTF-8.
      languages: what the text may be in, for the guess in the message.
      gb18030: read GB18030 where the bytes are no UTF-8 and the result reads as Chinese.
    Raises:
      UserError: other bytes; names file, byte and line.
    """
    if encoding:
        return _told(data, where, encoding)
    if b"\0" in data:
        likely = _utf16(data) or "no text"
        problem = f"not UTF-8 (holds NUL bytes); it looks like {likely}; save the file as UTF-8"
        if likely.startswith("utf"):
            raise WrongEncoding(f"{problem} or add ", likely, place=where)
        raise UserError(problem, place=where)
    if likely := _seven_bit(data):
        problem = f"not UTF-8 text (ASCII with the marks of {likely}); save the file as UTF-8 or add "
        raise WrongEncoding(problem, likely, place=where)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        if gb18030 and (text := _chinese(data)):
            return text
        line = data.count(b"\n", 0, e.start) + 1
        problem = f"not UTF-8 (byte 0x{data[e.start]:02x} at position {e.start}, line {line})"
        if _damaged(data):
            hint = ", though the rest of it is; the file is damaged there, get it anew"
            raise UserError(problem, place=where, hint=hint) from None
        likely = guess(data, languages)
        hint = f"it looks like {likely}; save" if likely else "save"
        raise WrongEncoding(f"{problem}; {hint} the file as UTF-8 or add ", likely or "NAME", place=where) from None


def _damaged(data: bytes) -> bool:
    """Whether bytes are UTF-8 but for a few."""
    text = data[:_LOOKED_AT].decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    return len(re.findall(r"[^\x00-\x7f]", text)) > 20 * wrong


def _seven_bit(data: bytes) -> str:
    """The encoding whose marks stand in bytes that are valid UTF-8 all the same, "" for none."""
    if not data.isascii():
        return ""
    for name, marks in _SEVEN_BIT.items():
        if marks.search(data):
            return name
    return ""


def _told(data: bytes, where: str, encoding: str) -> str:
    name = codecs.lookup(encoding).name
    if not name.startswith("utf"):
        try:
            several = len(re.findall(r"[^\x00-\x7f]", data.decode("utf-8"))) >= 4
        except UnicodeDecodeError:
            several = False
        if several:  # four sequences that happen to be right UTF-8 are none of another encoding
            raise WrongEncoding("is UTF-8; ", encoding, " would garble it; leave it out", place=where)
    try:
        text = data.decode(encoding)
    except UnicodeError as e:
        start = getattr(e, "start", 0)
        line = data.count(b"\n", 0, start) + 1
        byte = f"byte 0x{data[start]:02x} at position {start}, line {line}" if start < len(data) else "cut short"
        raise UserError(f"{where}: not {encoding} ({byte}), which --encoding says it is") from None
    if "\0" in text:
        raise WrongEncoding("holds NUL characters when read as ", encoding, "; it is in another one", place=where)
    return text.removeprefix("\ufeff")


def _chinese(data: bytes) -> str | None:
    """The text when the bytes are GB18030 and read as Chinese, else None."""
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        return None
    return text if reads_as("zh", text) > 0.3 else None


def reads_as(language: str, text: str) -> float:
    """From 0 to 1, how much the letters beyond ASCII look like text of a language."""
    text = text[:_LOOKED_AT]
    if SCRIPTS_OF[language] == ("latin",):
        marks = r"(?<=[a-z ¿¡(])[àâäáãçéèêëîïíôöóùûüúÿñæœß]|[ÉÈÀÁÍÓÚÑÇ](?=[a-z])|[¿¡«»ºª®±µ²³]|(?<=\w)’|[“”‘–—…€]"
        return len(re.findall(marks, text)) / max(1, len(re.findall(r"[^\x00-\x7f]", text)))
    beyond = re.findall(r"[^\x00-\x7f\u3000-\u303f\uff00-\uff65\u2000-\u22ff·°]", text)
    if not beyond:
        return 0.0
    if language == "zh":
        han = SCRIPTS["han"].findall(text)
        return common_chinese(text) * len(han) / len(beyond)
    if language == "ja":
        kana = len(re.findall(r"[\u3041-\u3096\u30a1-\u30fc]", text))  # not the half-width ones
        both = kana + len(SCRIPTS["han"].findall(text))
        return (0.3 + 0.7 * min(1.0, 4 * kana / len(beyond))) * both / len(beyond) if kana else 0.0
    if language == "ko":
        return len(re.findall(r"[\uac00-\ud7a3]", text)) / len(beyond)
    # Russian: the wrong one of its encodings turns small letters into capitals.
    return len(re.findall(r"[аоеинтсрвлкмдпуяыьгзбчйхжшюцщэфё]", text)) / len(beyond)


def _utf16(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    # What tables and JSON have whatever the language, and what no letters of another byte order look like.
    found = {name: re.findall(r"[\t\n\r,:\"{}]", data[:4096].decode(name, "ignore")) for name in _WIDE}
    best = max(found, key=lambda name: len(found[name]))
    return best if found[best] else ""


def guess(data: bytes, languages: tuple[str, ...]) -> str:
    """The encoding that the bytes of a text look like, of those that its languages are written in; "" for none."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4096]:
        return _utf16(data)
    best, most = "", 0.3
    for language in languages or tuple(_LIKELY):
        for encoding in _LIKELY[language]:
            try:
                text = data[:_LOOKED_AT].decode(encoding)
            except UnicodeDecodeError as e:
                if e.start < _LOOKED_AT - 8:
                    continue
                text = data[: e.start].decode(encoding)
            score = reads_as(language, text)
            if score > most + 1e-9:
                best, most = encoding, score
    return best
