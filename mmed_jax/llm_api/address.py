"""The address of an endpoint: checked before it is used, and shown without what may be secret in it."""

import ipaddress
import os
import re
from urllib.parse import urlsplit

from mmed_jax.common.errors import UserError, printable

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")


def shown_url(url: str) -> str:
    """An address of any form without user name, password and query: for messages, the ledger and results.

    What stands before an "@" is left out also where a slash or no scheme at all keeps it from being a user name and a
    password by the rules; of what stands where a port should, only numbers are shown.
    """
    found = _SCHEME.match(url)
    scheme = found[0] if found else ""
    rest = url[len(scheme) :]
    host = re.split(r"[/?#]", rest)[0]
    rest = re.sub("(?i)%3a", ":", re.sub("%40|\uff20", "@", host)) + rest[len(host) :]
    before, at, after = rest.rpartition("@")
    if at and (":" in before or "@" in re.split(r"[/?#]", rest)[0]):
        rest = after
    rest = re.split(r"[?#]", rest)[0]
    host, slash, path = rest.partition("/")
    if not _HOST_AND_PORT.fullmatch(host):
        host = host.partition(":")[0] + ":..."
    return printable(scheme + host + slash + path)


def check_url(url: str, flag: str = "--base_url") -> None:
    """Refuses an address that no request can be sent to.

    Raises:
      UserError: not http(s), no host, a port that is none, blanks or control characters, or a query.
    """
    problem = ""
    if re.search(r"[\x00-\x20\x7f-\xa0\u2028\u2029\\]", url):
        problem = "holds a blank, a backslash or a control character"
    elif not re.match(r"https?://", url, re.IGNORECASE):
        problem = "must start with http:// or https:// (and mostly end in /v1)"
    elif "?" in url or "#" in url:
        problem = "must have no ? and no # in it: paths are put behind it (in a password, write %3F and %23)"
    else:
        try:
            parts = urlsplit(url)
            if not parts.hostname:
                problem = "names no host"
            elif parts.port == 0:
                raise ValueError
            elif re.fullmatch(r"[\d.]+", parts.hostname):
                ipaddress.ip_address(parts.hostname)
            elif not parts.hostname.isascii():
                parts.hostname.encode("idna")
        except ValueError:
            problem = "its host or port is malformed, as in http://HOST:8000/v1 or http://[::1]:8000/v1"
    if problem:
        raise UserError(f"{flag}={shown_url(url)}: {problem}")


def check_address(base_url: str | None) -> None:
    """`check_url` of the address that a run would use, by the name it was given under."""
    if base_url:
        check_url(base_url)
    elif url := os.environ.get("OPENAI_BASE_URL"):
        check_url(url, "OPENAI_BASE_URL")
    elif url := os.environ.get("AZURE_OPENAI_ENDPOINT"):
        check_url(url, "AZURE_OPENAI_ENDPOINT")
