"""A run on Google Kubernetes Engine as the manifest of a JobSet: TPU7x, which the Cloud TPU API lacks, and the others.

The fields: github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go;
kubernetes.io/docs/tasks/job/pod-failure-policy; docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from mmed_jax.common.errors import UNFINISHED, UserError
from scripts.pod.attempts import full_command
from scripts.pod.resources import CloudSlice
from scripts.pod.watch import run_dir_of

TEMPLATE = Path(__file__).with_name("jobset.yaml")


def make_manifest(
    name: str,
    slices: CloudSlice,
    image: str,
    command: Sequence[str],
    spot: bool = False,
    max_restarts: int = 10,
    service_account: str = "default",
) -> str:
    """The manifest, YAML for `kubectl apply -f`.

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
    selector = {
        "cloud.google.com/gke-tpu-accelerator": slices.cloud.gke,
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, slices.shape)),
    }
    if spot:
        selector["cloud.google.com/gke-spot"] = "true"
    values = {
        "name": name,
        "image": image,
        # Kubernetes would put variables of the container in the place of $(NAME).
        "command": [word.replace("$(", "$$(") for word in full_command(command, slices.slices * slices.workers)],
        "selector": selector,
        "slices": slices.slices,
        "workers": slices.workers,
        "chips": slices.chips_a_vm,
        "max_restarts": max_restarts,
        "service_account": service_account,
        "unfinished": UNFINISHED,
    }
    # JSON is YAML, on one line and with every string quoted.
    quoted = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(quoted)
