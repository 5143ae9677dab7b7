"""What a plan says: memory, speed and what they rest on, of one configuration on one topology."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PlanResult:
    """What is known of one configuration on one topology. Bytes are of one chip; seconds of one optimizer step."""

    topology: dict[str, Any]
    mesh: dict[str, int]
    settings: dict[str, Any]
    parameters: int
    # Of an adapter, if one is trained; else all of them.
    trained_parameters: int
    tokens_per_step: int
    method: str  # "compiled" or "arithmetic"
    fits: bool
    capacity_bytes: float
    terms: list[dict[str, Any]]
    # Compiled: from the compiler; arithmetic: argument = state, temporary = step.
    argument_bytes: float = 0.0
    temporary_bytes: float = 0.0
    needed_bytes: float = 0.0
    summed_bytes: float = 0.0
    failure: str = ""
    hlo_flops: float = 0.0
    model_flops: float = 0.0
    compute_s: float = 0.0
    kernel_s: float = 0.0
    ici_s: float = 0.0
    dcn_s: float = 0.0
    low_s: float = 0.0
    schedule_s: float = 0.0
    high_s: float = 0.0
    collective_bytes: dict[str, float] = field(default_factory=dict)
    blocking_bytes: float = 0.0
    scopes: list[dict[str, str | float]] = field(default_factory=list)
    flags: dict[str, str | bool] = field(default_factory=dict)
    compile_seconds: float = 0.0
    cached: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def chips(self) -> int:
        return self.topology["chips"]

    @property
    def unit(self) -> str:
        """What has the memory and does the FLOPs: a chip, or where a chip is several jax devices, one of them."""
        return "chip" if self.topology.get("devices_a_chip", 1) == 1 else "device"

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation (0..1) of a step of so many seconds."""
        return self.model_flops / (seconds * self.topology["peak_flops"]) if seconds else 0.0

    def tokens_per_second_chip(self, seconds: float) -> float:
        """Tokens a second and chip of a step of so many seconds."""
        return self.tokens_per_step / (seconds * self.chips) if seconds else 0.0
