"""Public data sets: one adapter each, from the published files to checked records. Imports no jax."""

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.sources.casimedicos import CASIMEDICOS
from mmed_jax.data.sources.cmb_clin import CMB_CLIN
from mmed_jax.data.sources.convert import Conversion, Report
from mmed_jax.data.sources.covid_faq import COVID_FAQ
from mmed_jax.data.sources.frenchmedmcqa import FRENCHMEDMCQA
from mmed_jax.data.sources.headqa import HEADQA
from mmed_jax.data.sources.igakuqa import IGAKUQA
from mmed_jax.data.sources.kormedmcqa import KORMEDMCQA
from mmed_jax.data.sources.medmcqa import MEDMCQA
from mmed_jax.data.sources.medqa import MEDQA_US, MEDQA_ZH
from mmed_jax.data.sources.medquad import MEDQUAD
from mmed_jax.data.sources.mfds_edrug import MFDS_EDRUG
from mmed_jax.data.sources.mmedbench import MMEDBENCH
from mmed_jax.data.sources.mmlu import JMMLU_MEDICAL, MMLU_MEDICAL
from mmed_jax.data.sources.pubmedqa import PUBMEDQA
from mmed_jax.data.sources.rumeddanet import RUMEDDANET
from mmed_jax.data.sources.source import Drop, Hub, Row, Source, WrongForm
from mmed_jax.data.sources.toyhom import TOYHOM
from mmed_jax.data.sources.xlinghealth import XLINGHEALTH

__all__ = ["SOURCES", "Conversion", "Drop", "Hub", "Report", "Row", "Source", "WrongForm", "get_source"]

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        MEDQA_US,
        MEDQA_ZH,
        MEDMCQA,
        PUBMEDQA,
        MMLU_MEDICAL,
        JMMLU_MEDICAL,
        FRENCHMEDMCQA,
        RUMEDDANET,
        HEADQA,
        CASIMEDICOS,
        MEDQUAD,
        XLINGHEALTH,
        TOYHOM,
        CMB_CLIN,
        MFDS_EDRUG,
        COVID_FAQ,
        MMEDBENCH,
        KORMEDMCQA,
        IGAKUQA,
    )
}


def get_source(name: str) -> Source:
    """The adapter of that name. Raises UserError with the nearest name."""
    if name not in SOURCES:
        raise UserError(f"no source '{name}'{nearest(name, SOURCES)}")
    return SOURCES[name]
