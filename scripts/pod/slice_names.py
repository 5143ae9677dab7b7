"""The planner's names of slices (v5e-64, 2xv5p-128) as the cloud calls them."""

import re
from dataclasses import dataclass
from math import prod

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.planning import topology


@dataclass(frozen=True)
class CloudChip:
    """A TPU generation in Google's APIs.

    type: beginning of --accelerator-type; "" where the Cloud TPU API does not have it.
    runtime: --runtime-version. gke: the label cloud.google.com/gke-tpu-accelerator. one_vm: chips of the largest
    slice that is one virtual machine; larger ones have four chips a machine.
    """

    type: str
    runtime: str
    gke: str
    one_vm: int = 4


# Runtimes: docs.cloud.google.com/tpu/docs/runtimes. GKE's labels and chips of a machine:
# docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
CLOUD_CHIPS = {
    "v4": CloudChip("v4", "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5e": CloudChip("v5litepod", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", one_vm=8),
    "v5p": CloudChip("v5p", "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": CloudChip("v6e", "v2-alpha-tpuv6e", "tpu-v6e-slice", one_vm=8),
    "tpu7x": CloudChip("", "", "tpu7x"),
}


@dataclass(frozen=True)
class CloudSlice:
    """Equal slices. `shape` in chips, `workers` = virtual machines, both of one slice."""

    name: str
    chip: str
    size: int
    slices: int
    shape: tuple[int, ...]
    cloud: CloudChip

    @property
    def chips(self) -> int:
        return prod(self.shape)

    @property
    def workers(self) -> int:
        return 1 if self.chips <= self.cloud.one_vm else self.chips // 4

    @property
    def accelerator_type(self) -> str:
        return f"{self.cloud.type}-{self.size}"

    @property
    def chips_a_vm(self) -> int:
        return self.chips // self.workers

    @property
    def gke_topology(self) -> str:
        return "x".join(map(str, self.shape))


def parse_slice(text: str) -> CloudSlice:
    """The slices of a planner's name, or of the cloud's own (v5litepod-64).

    Raises:
      UserError: no such name, with the nearest; a GPU's; a chip that the launcher knows nothing of.
    """
    name = text.strip().lower().replace("v5litepod-", "v5e-")
    match = re.fullmatch(r"(?:(\d+)x)?(.*)", name)
    number, one = match.groups() if match else ("", name)
    known = [n for n in topology.names() if not n.startswith("gpu:")]
    if one not in known or int(number or 1) < 1:
        raise UserError(f"--tpu={text}: no such slice{nearest(one, known)}")
    slices = topology.parse(one)
    chip, _, size = one.rpartition("-")
    if chip not in CLOUD_CHIPS:
        raise UserError(f"--tpu={text}: {chip} has no row in CLOUD_CHIPS of scripts/pod/slice_names.py")
    return CloudSlice(name, chip, int(size), int(number or 1), slices.shape, CLOUD_CHIPS[chip])
