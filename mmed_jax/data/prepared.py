"""What `prepare` gives: the tables that a run reads."""

from dataclasses import dataclass, field

from mmed_jax.data.mixture import Mixture
from mmed_jax.data.packed_table import Table


@dataclass(frozen=True)
class Prepared:
    """Packed tables of a run. `validation` holds one table under "validation", or nothing when none is held out."""

    train: Table
    validation: dict[str, Table]
    report: dict  # see token_report.print_report
    # Which row stands at which position, of tables whose groups are mixed as they are read.
    mixture: Mixture | None = None
    # Validation records to ask a model about while it trains, in a fixed order that is spread over the languages.
    held_out: list[dict] = field(default_factory=list)
