"""Documents whose licence is unknown or not allowed are left out, by the table that instruction sets use as well."""

from collections.abc import Sequence
from dataclasses import dataclass

from datatrove.data import Document

from data_gen.corpus.document_steps import DocumentFilter
from data_gen.sets.licenses import FILTERS, allowed, terms
from mmed_jax.common.errors import UserError, nearest

ALL = "all"


@dataclass(frozen=True)
class LicenseSettings:
    """allow: "open", "research" (data_gen.sets.licenses) or "all". also: licence texts that are let in by name."""

    allow: str = "open"
    also: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.allow not in (*FILTERS, ALL):
            raise UserError(f"licenses.allow '{self.allow}': unknown{nearest(self.allow, (*FILTERS, ALL))}")


class LicenseFilter(DocumentFilter):
    """Step: keeps documents whose `license` the settings let in."""

    name = "licenses"

    def __init__(self, settings: LicenseSettings | None = None, exclusion_writer=None) -> None:
        super().__init__(exclusion_writer)
        self.settings = settings or LicenseSettings()
        self._verdicts: dict[str, str | None] = {}

    def judge(self, doc: Document) -> str | None:
        """Why the document is dropped: no licence is known, or which kind it is of; None where it is kept."""
        license = doc.metadata.get("license") or ""
        if license not in self._verdicts:
            self._verdicts[license] = judge_license(license, self.settings)
        return self._verdicts[license]


def judge_license(license: str, settings: LicenseSettings) -> str | None:
    """Why documents of this licence are left out; None where they are let in."""
    if settings.allow == ALL or allowed(license, settings.allow, tuple(settings.also)):
        return None
    kind = terms(license).kind
    return "licence unknown" if kind == "none" else f"licence: {kind}"
