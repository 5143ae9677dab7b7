"""What a row's licence allows, from its text as the sources state it. A table, not legal advice.

open      use, change and redistribution for any purpose, at most with attribution or under the same licence
research  the above, non-commercial licences, and public-sector texts whose terms could not be verified
Licences that forbid derivatives ("CC BY-ND"), texts without any licence, and licences not in the table, pass neither:
a recipe must name them in `licenses_also`.
"""

import re
from typing import NamedTuple

from mmed_jax.common.errors import UserError, nearest

FILTERS = ("open", "research")


class Terms(NamedTuple):
    """`kind`: "open", "share-alike", "non-commercial", "no-derivatives", "unverified" or "none"; `note` what to say of
    it in a card."""

    kind: str
    note: str


# First match decides. A text that names several licences ("MIT, Apache-2.0") is judged by the strictest.
_TABLE: tuple[tuple[str, Terms], ...] = (
    (r"none stated|no licen[cs]e|all rights reserved", Terms("none", "no licence: no permission to redistribute")),
    (r"unverified", Terms("unverified", "public-sector text, terms not verified")),
    (r"-nd\b|\bnd\b|no-?\s?deriv", Terms("no-derivatives", "no translations or other adaptations")),
    (r"-?nc\b|non-?commercial|research (?:use )?only|academic", Terms("non-commercial", "non-commercial use only")),
    (r"cc[- ]by-sa|gfdl|gpl", Terms("share-alike", "derived rows stay under the same licence")),
    (r"public domain|cc0|us government", Terms("open", "public domain")),
    (r"\bcc[- ]by\b|apache|\bmit\b|bsd|odc-by", Terms("open", "attribution")),
)
_ALLOWED = {
    "open": ("open", "share-alike"),
    "research": ("open", "share-alike", "non-commercial", "unverified"),
}


def terms(license: str) -> Terms:
    """The terms of a licence text; kind "none" when it is unknown or says nothing."""
    text = license.casefold()
    return next((t for pattern, t in _TABLE if re.search(pattern, text)), Terms("none", "not in the table of licences"))


def allowed(license: str, filter: str, also: tuple[str, ...] = ()) -> bool:
    """Whether rows of this licence belong into a set built with `--licenses=filter`. `also`: texts let in by name.

    Raises UserError for a filter that is not one of FILTERS.
    """
    if filter not in FILTERS:
        raise UserError(f"--licenses={filter}: unknown{nearest(filter, FILTERS)}")
    return license in also or terms(license).kind in _ALLOWED[filter]
