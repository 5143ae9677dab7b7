"""The identifier of languages of the gates: that of mmed_jax, so that gates and evaluation reports agree."""

from mmed_jax.data.language import SURE_OF_NAMES, language_problem, script_shares
from mmed_jax.data.scripts import SCRIPTS_OF

__all__ = ["SCRIPTS_OF", "SURE_OF_NAMES", "language_problem", "script_shares"]
