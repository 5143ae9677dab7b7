"""The manifest of a JobSet for Google Kubernetes Engine: TPU7x, which the Cloud TPU API does not serve, and the others.

A JobSet (jobset.x-k8s.io/v1alpha2) makes one Job a slice and one pod a virtual machine, and a headless service by which
the pods find each other. GKE puts the variables that jax reads (TPU_WORKER_ID, MEGASCALE_..) into pods with
google.com/tpu. Exit codes: 75 (stopped, saved) and pods taken away with their machine start the set again and do not
count; every other failure starts it again at most `max_restarts` times. The fields:
github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go; kubernetes.io/docs/tasks/job/pod-failure-policy.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from mmed_jax.common.errors import UNFINISHED, UserError
from scripts.pod.attempts import full_command
from scripts.pod.newest_step import run_dir_of
from scripts.pod.slice_names import CloudSlice

CONTAINER = "train"
# Spot machines give less; GKE then takes what there is.
SECONDS_TO_SAVE = 600


def make_jobset(
    name: str,
    slices: CloudSlice,
    image: str,
    command: Sequence[str],
    *,
    spot: bool = False,
    max_restarts: int = 10,
    service_account: str = "",
) -> dict[str, Any]:
    """The manifest as a tree.

    Raises:
      UserError: no command, no run_dir in a bucket (pods keep nothing), a name that is none in Kubernetes.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise UserError(f"--name={name}: at most 40 small letters, digits and '-', beginning with a letter")
    if not image:
        raise UserError("--gke needs --image=.. with this checkout and its environment in it")
    if not command:
        raise UserError("--gke needs the command: up --gke .. -- python -m mmed_jax.train ..")
    if not (run_dir := run_dir_of(command)).startswith("gs://"):
        raise UserError(f"--config.run_dir={run_dir}: a pod's disk goes with it; name gs://BUCKET/FOLDER")
    job = {
        "parallelism": slices.workers,
        "completions": slices.workers,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [UNFINISHED]},
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"spec": _pod(slices, image, command, spot, service_account)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            # A slice is a node pool, and takes a whole one.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All"},
            "failurePolicy": {
                "maxRestarts": max_restarts,
                "rules": [
                    {
                        "name": "unfinished",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": "slice", "replicas": slices.slices, "template": {"spec": job}}],
        },
    }


def _pod(slices: CloudSlice, image: str, command: Sequence[str], spot: bool, service_account: str) -> dict[str, Any]:
    tolerations = [{"key": "google.com/tpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"}]
    selector = {
        "cloud.google.com/gke-tpu-accelerator": slices.cloud.gke,
        "cloud.google.com/gke-tpu-topology": slices.gke_topology,
    }
    if spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    chips = {"google.com/tpu": slices.chips_a_vm}
    container = {
        "name": CONTAINER,
        "image": image,
        "command": full_command(command, slices.slices * slices.workers),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        # 8471: libtpu among the machines of a slice; 8080: between slices; 8476: jax's coordinator.
        "ports": [{"containerPort": port} for port in (8471, 8080, 8476)],
        "resources": {"requests": chips, "limits": chips},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SECONDS_TO_SAVE,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    return {**pod, "serviceAccountName": service_account} if service_account else pod


def to_yaml(value: Any, indent: int = 0) -> str:
    """A tree of dicts, lists and scalars as YAML; strings are quoted as in JSON, which YAML reads as well."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        return "\n".join(f"{pad}{json.dumps(k) if '/' in k else k}:{_below(v, indent)}" for k, v in value.items())
    if isinstance(value, list) and value:
        return "\n".join(f"{pad}-{_item(v, indent)}" for v in value)
    return pad + json.dumps(value, ensure_ascii=False)


def _below(value: Any, indent: int) -> str:
    nested = isinstance(value, dict | list) and value
    return "\n" + to_yaml(value, indent + 1) if nested else " " + json.dumps(value, ensure_ascii=False)


def _item(value: Any, indent: int) -> str:
    nested = isinstance(value, dict | list) and value
    return " " + (to_yaml(value, indent + 1).lstrip() if nested else json.dumps(value, ensure_ascii=False))
