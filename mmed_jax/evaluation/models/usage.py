"""What answering cost, as a model under evaluation reports it when all is answered."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Usage:
    """`model`: fields for "model" of results.json. `results`: fields beside it. `lines`: for the terminal."""

    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    lines: tuple[str, ...] = ()
