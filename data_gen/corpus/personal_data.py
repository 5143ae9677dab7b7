"""Personal data in running text: e-mail and public IP addresses are masked, telephone numbers where asked for.

An address is masked and not removed, so that the sentence around it stays one. What looks like an IP address and is
numbering stays: enzymes (EC 3.4.21.4), sections (4.2.1.1), versions: of a public address two of the four numbers are
above 31 in 99 of 100 cases, of numbering hardly ever. Private, reserved and documentation addresses stay as well.

Telephone numbers are off by default: tables of doses, ranges and dates look like them. The patterns want a number as it
is printed: with the international sign, or grouped as the country of the language groups them and with a word for
telephone in front of it.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data_gen.corpus.document_steps import DocumentRewriter
from mmed_jax.common.errors import UserError, nearest

# A name in ASCII, so that it ends before writing without spaces; a domain in any letters.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9.+_-])[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}@"
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+(?:[^\W\d_]{2,24}|xn--[a-z0-9-]{2,59})(?![\w-])"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)")
_ENZYME = re.compile(r"\bE\.?\s?C\.?\s?(?:number|no\.?)?[\s:]*$", re.IGNORECASE)
# With + and the code of a country: at least eight digits, in groups or not.
_INTERNATIONAL = re.compile(r"(?<![\w+])\+\d{1,3}(?:[ \u00a0.\-/]?\(?\d{1,4}\)?){2,6}(?!\w)")
# What numbers are announced with, and how they are grouped at home.
_NAMED = r"(?:{words})(?:\s*(?:[.:：№#-]|nº|n°))*\s*"
_PHONES = {
    "en": (r"\b(?:tel|phone|telephone|call|fax|mobile|cell)\b", r"\(?\d{3,5}\)?[ .-]\d{3,4}[ .-]?\d{3,4}"),
    "fr": (r"\b(?:t[ée]l|t[ée]l[ée]phone|appel(?:ez|er)|fax|portable)\b", r"0\d(?:[ .-]?\d{2}){4}"),
    "es": (r"\b(?:tel|tel[ée]f(?:ono)?|tlf|llam(?:e|ar)(?: al)?|fax|m[óo]vil)\b", r"\d{2,3}(?:[ .-]?\d{2,3}){2,3}"),
    "ru": (r"\b(?:тел|телефон|факс|звоните|моб)\b", r"[78]?[ -]?\(?\d{3,5}\)?(?:[ -]?\d{2,3}){2,3}"),
    "zh": (r"(?:电话|电話|電話|手机|热线|传真|联系方式)", r"(?:1\d{2}[ -]?\d{4}[ -]?\d{4}|\(?0\d{2,3}\)?[ -]?\d{7,8})"),
    "ja": (r"(?:電話(?:番号)?|TEL|Tel|ファックス|FAX|携帯)", r"\(?0\d{1,4}\)?[ -]?\d{1,4}[ -]?\d{3,4}"),
    "ko": (r"(?:전화(?:번호)?|연락처|팩스|휴대폰|TEL|Tel)", r"(?:\(?0\d{1,2}\)?[ .-]?\d{3,4}|1\d{3})[ .-]?\d{4}"),
}
_PHONE_OF = {
    language: re.compile(rf"({_NAMED.format(words=words)})({number})(?!\d)", re.IGNORECASE)
    for language, (words, number) in _PHONES.items()
}
_SMALL = 31
_GIVEN_OUT = ipaddress.ip_network("2000::/3")


@dataclass(frozen=True)
class PersonalDataSettings:
    """What is masked, and with what; JSON-able. phones: languages whose telephone numbers are masked, or "all"."""

    emails: bool = True
    ip_addresses: bool = True
    phones: Sequence[str] = ()
    email_mask: str = "name@example.org"
    ip_mask: str = "192.0.2.1"
    phone_mask: str = "[phone]"

    def __post_init__(self) -> None:
        for language in self.phones:
            if language != "all" and language not in _PHONES:
                raise UserError(
                    f"telephone numbers of language {language!r}: none{nearest(language, ('all', *_PHONES))}"
                )


def mask_personal_data(text: str, language: str, settings: PersonalDataSettings) -> tuple[str, dict[str, int]]:
    """(text with masks, {what: how many}). Masking a text again changes nothing."""
    counts: Counter[str] = Counter()
    if settings.emails and "@" in text:
        counts["e-mail addresses"] = sum(address != settings.email_mask for address in _EMAIL.findall(text))
        text = _EMAIL.sub(settings.email_mask, text)
    if settings.ip_addresses:
        for pattern in (_IPV4, _IPV6):
            text, number = _mask_addresses(text, pattern, settings.ip_mask)
            counts["IP addresses"] += number
    if "all" in settings.phones or language in settings.phones:
        text, number = _mask_phones(text, language, settings.phone_mask)
        counts["telephone numbers"] = number
    return text, {what: number for what, number in counts.items() if number}


def _mask_phones(text: str, language: str, mask: str) -> tuple[str, int]:
    before = text.count(mask)
    text = _INTERNATIONAL.sub(lambda m: mask if 8 <= sum(map(str.isdigit, m[0])) <= 15 else m[0], text)
    if language in _PHONE_OF:
        text = _PHONE_OF[language].sub(lambda m: m[1] + mask, text)
    return text, text.count(mask) - before


def _mask_addresses(text: str, pattern: re.Pattern, mask: str) -> tuple[str, int]:
    number = 0

    def masked(match: re.Match) -> str:
        nonlocal number
        if not _is_public(match[0]) or _ENZYME.search(text[max(0, match.start() - 14) : match.start()]):
            return match[0]
        number += 1
        return mask

    return pattern.sub(masked, text), number


def _is_public(address: str) -> bool:
    """Whether it is an address of a machine on the internet, and no numbering with three points."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.version == 4:
        return parsed.is_global and sum(int(part) > _SMALL for part in address.split(".")) >= 2
    # All that is given out begins with 2 or 3 in four places; "a::b" is an address by its form alone.
    return parsed.is_global and parsed in _GIVEN_OUT


class MaskPersonalData(DocumentRewriter):
    """Step: masks personal data; counts what it masked by kind."""

    name = "personal data"

    def __init__(self, settings: PersonalDataSettings | None = None, exclusion_writer=None) -> None:
        super().__init__(exclusion_writer)
        self.settings = settings or PersonalDataSettings()

    def rewrite(self, doc) -> tuple[str, dict[str, int], str | None]:
        text, counts = mask_personal_data(doc.text, doc.metadata.get("language") or "", self.settings)
        return text, counts, None
