"""Queued resources: one or several slices, asked for by the planner's names; their states and nodes (one a slice)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from mmed_jax.common.errors import UserError, WorkError, nearest
from mmed_jax.planning import topology
from scripts.pod.gcloud import Gcloud, GcloudFailed

# docs.cloud.google.com/tpu/docs/queued-resources
COMING = ("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
OVER = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
NODE_COMING = ("CREATING", "STARTING", "RESTARTING", "REPAIRING")


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
        raise UserError(f"--tpu={text}: {chip} has no row in CLOUD_CHIPS of scripts/pod/resources.py")
    return CloudSlice(name, chip, int(size), int(number or 1), slices.shape, CLOUD_CHIPS[chip])


@dataclass(frozen=True)
class Order:
    """What is asked for. `slices` None = whatever is there."""

    slices: CloudSlice | None
    runtime: str = ""
    spot: bool = False
    flex_start: bool = False
    max_run_duration: str = ""
    reserved: bool = False
    network: str = ""

    def check(self) -> None:
        """Raises a UserError where the parts do not go together."""
        if self.slices is not None and not self.slices.cloud.type:
            raise UserError(
                f"--tpu={self.slices.name}: the Cloud TPU API does not serve {self.slices.chip}; `up --gke` writes the "
                "manifest of a JobSet for Google Kubernetes Engine"
            )
        if self.spot + self.flex_start + self.reserved > 1:
            raise UserError("of --spot, --flex_start and --reserved only one can be asked for")
        if self.flex_start and not self.max_run_duration:
            raise UserError("--flex_start needs --max_run_duration, at most seven days: --max_run_duration=7d")
        if self.max_run_duration and not self.flex_start:
            raise UserError("--max_run_duration goes with --flex_start")
        if self.max_run_duration and not re.fullmatch(r"(\d+[smhd])+", self.max_run_duration):
            raise UserError(f"--max_run_duration={self.max_run_duration}: not a duration such as 12h or 7d")


@dataclass(frozen=True)
class Node:
    """A slice that is there. `workers`: its virtual machines; 0 while they are not known."""

    name: str
    state: str
    workers: int


@dataclass(frozen=True)
class Resource:
    """What the cloud says of a queued resource."""

    state: str
    nodes: tuple[str, ...]
    accelerator_type: str
    labels: Mapping[str, str]
    why: str = ""


class Pod:
    """The queued resource of a name."""

    def __init__(self, gcloud: Gcloud, name: str):
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,57}[a-z0-9])?", name):
            raise UserError(f"--name={name}: small letters, digits and '-', beginning with a letter")
        self.gcloud, self.name = gcloud, name

    def create_arguments(self, order: Order, labels: Mapping[str, str]) -> list[str]:
        """The words of the command that asks for it."""
        slices = order.slices
        if slices is None:
            raise UserError("--tpu=NAME, for example --tpu=v5e-64, or TPU_TYPE in the environment")
        several = slices.slices > 1
        nodes = (
            [f"--node-count={slices.slices}", f"--node-prefix={self.name}"] if several else [f"--node-id={self.name}"]
        )
        flags = [
            *nodes,
            f"--accelerator-type={slices.accelerator_type}",
            f"--runtime-version={order.runtime or slices.cloud.runtime}",
        ]
        flags += ["--spot"] if order.spot else []
        flags += ["--reserved"] if order.reserved else []
        if order.flex_start:
            flags += ["--provisioning-model=flex-start", f"--max-run-duration={order.max_run_duration}"]
        flags += [f"--network={order.network}"] if order.network else []
        flags += [f"--labels={','.join(f'{k}={v}' for k, v in labels.items())}"] if labels else []
        words = self.gcloud.tpu("queued-resources", "create", self.name, *flags)
        return ["alpha", *words] if order.flex_start else words  # the other tracks do not have these flags

    def create(self, order: Order, labels: Mapping[str, str]) -> None:
        """Asks for it; it is there when its state is ACTIVE."""
        order.check()
        self.gcloud.call(self.create_arguments(order, labels))

    def describe(self) -> Resource | None:
        """What the cloud says; None when there is none of this name. Raises GcloudFailed after some tries."""
        answer = self.gcloud.ask(self.gcloud.tpu("queued-resources", "describe", self.name))
        return None if answer is None else _resource(answer, self.name)

    def nodes(self, resource: Resource) -> list[Node]:
        """Its slices, in order; GONE as state of one that the cloud does not know."""
        return [self._node(name) for name in resource.nodes]

    def _node(self, name: str) -> Node:
        answer = self.gcloud.ask(self.gcloud.tpu("tpu-vm", "describe", name))
        if answer is None:
            return Node(name, "GONE", 0)
        return Node(name, str(answer.get("state", "")), len(answer.get("networkEndpoints") or ()))

    def lost(self) -> str:
        """Why the workers are gone, in words; "" when the cloud says that all is there."""
        resource = self.describe()
        if resource is None:
            return f"{self.name} does not exist any more"
        if resource.state != "ACTIVE":
            return f"{self.name} is {resource.state}{resource.why}"
        # A machine that is repaired or restarts comes back, and the slice may be hard to get again.
        gone = [f"{n.name} is {n.state}" for n in self.nodes(resource) if n.state not in ("READY", *NODE_COMING)]
        return ", ".join(gone)

    def delete(self) -> None:
        """Deletes it with its slices and waits until it is gone; nothing happens when there is none."""
        delete = self.gcloud.tpu("queued-resources", "delete", self.name, "--force")
        for number in range(self.gcloud.pace.tries):
            try:
                self.gcloud.call(delete)
            except GcloudFailed as e:
                if e.not_found:
                    return
                if number == self.gcloud.pace.tries - 1:
                    raise
            if self.describe() is None:
                return
            self.gcloud.pace.sleep(self.gcloud.pace.state)
        raise WorkError(f"{self.name} is still there after it was deleted {self.gcloud.pace.tries} times")

    def wait_until_active(self) -> Resource:
        """Waits as long as the request is in the queue, and says each new state.

        Raises:
          WorkError: it is over (failed, suspended), or the cloud names no state or one that is not known.
        """
        before, unclear = "", 0
        while True:
            resource = self.describe()
            state = resource.state if resource else "not there"
            if state != before:
                print(f"{self.name}: {state}{resource.why if resource else ''}", flush=True)
                before = state
            if resource and state == "ACTIVE":
                coming = [n.name for n in self.nodes(resource) if n.state in NODE_COMING]
                if not coming:
                    return resource
            elif state in OVER:
                raise WorkError(f"{self.name} is {state}{resource.why if resource else ''}")
            elif state not in COMING:
                unclear += 1
                if unclear >= self.gcloud.pace.tries:
                    raise WorkError(f"{self.name}: the cloud names the state {state!r}, which is none to wait in")
            self.gcloud.pace.sleep(self.gcloud.pace.state)


def _resource(answer: Any, name: str) -> Resource:
    state = answer.get("state") or {}
    text = state.get("state", "") if isinstance(state, dict) else str(state)
    nodes: list[str] = []
    kind, labels = "", dict[str, str]()
    for spec in (answer.get("tpu") or {}).get("nodeSpec") or ():
        node = spec.get("node") or {}
        kind = kind or str(node.get("acceleratorType", "")).rpartition("/")[2]
        labels.update(node.get("labels") or {})
        several = spec.get("multisliceParams") or spec.get("multiNodeParams")
        if several:
            prefix = several.get("nodeIdPrefix") or name
            nodes += [f"{prefix}-{i}" for i in range(int(several["nodeCount"]))]
        else:
            nodes.append(str(spec.get("nodeId") or name))
    error = (state.get("failedData") or {}).get("error") or {} if isinstance(state, dict) else {}
    why = f" ({error['message']})" if error.get("message") else ""
    return Resource(str(text), tuple(nodes), kind, {**labels, **(answer.get("labels") or {})}, why)


def check_type(resource: Resource, order: Order, name: str) -> None:
    """Raises a UserError where the resource is another slice than the one that is asked for."""
    if order.slices is None:
        return
    wanted = f"{order.slices.slices} x {order.slices.accelerator_type}"
    there = f"{len(resource.nodes)} x {resource.accelerator_type}"
    if resource.accelerator_type and there != wanted:
        raise UserError(
            f"--tpu={order.slices.name}: {name} is there already as {there}; another --name, or `down` first"
        )
