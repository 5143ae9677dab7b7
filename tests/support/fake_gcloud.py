"""A gcloud that is this machine: queued resources with states over time, workers that are folders.

    with fake_gcloud(folder) as cloud: ...           `gcloud` in FOLDER/bin, which goes to the front of PATH
    cloud.states("mmed", ["PROVISIONING", "ACTIVE"]) what `describe` of it answers, one after the other; once a creation
    cloud.fail("ssh .*--worker=1", times=2)          commands that match fail; code and stderr as given
    cloud.preempt("mmed")                            kills what runs on its workers, SUSPENDED, ssh fails from then on
    cloud.calls("create")                            the commands that came and match

A command that comes by ssh runs with bash in the worker's home folder, FOLDER/workers/NODE/INDEX. `python3 -m venv`
there makes an environment whose pip only notes what was asked of it (HOME/pip.txt). `gcloud storage ls` asks the
server of fake_gcs.py that `environment` names.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_GCLOUD = r"""
import json, os, re, shutil, subprocess, sys, time, fcntl
home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
arguments = sys.argv[2:] if sys.argv[1] == "alpha" else sys.argv[1:]
line = " ".join("--command=" + a.rpartition(" on_worker ")[2] if a.startswith("--command=") else a for a in arguments)
lock = open(home + "/lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX)
with open(home + "/calls.txt", "a") as f:
    print(line.replace("\n", " "), file=f)

def load(name, default):
    try:
        with open(home + "/" + name) as f:
            return json.load(f)
    except FileNotFoundError:
        return default

def save(name, value):
    with open(home + "/" + name, "w") as f:
        json.dump(value, f)

def leave(text, code=1):
    fcntl.flock(lock, fcntl.LOCK_UN)
    print(text, file=sys.stderr)
    sys.exit(code)

rules = load("rules.json", [])
for rule in rules:
    if rule["times"] and re.search(rule["match"], line):
        rule["times"] -= 1
        save("rules.json", rules)
        leave(rule["stderr"], rule["code"])

flags = dict(a[2:].partition("=")[::2] for a in arguments if a.startswith("--"))
words = [a for a in arguments if not a.startswith("--")]
there = load("resources.json", {})
script = load("states.json", {})

if words[0] == "storage":
    import urllib.parse, urllib.request
    bucket, _, pattern = words[2].removeprefix("gs://").partition("/")
    prefix = urllib.parse.quote(pattern.partition("*")[0], safe="")
    server = load("environment.json", {})["STORAGE_EMULATOR_HOST"]
    with urllib.request.urlopen(f"{server}/storage/v1/b/{bucket}/o?prefix={prefix}") as answer:
        listed = [item["name"] for item in json.load(answer).get("items", [])]
    found = [name for name in listed if re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]*"), name)]
    if not found:
        leave("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.")
    for name in found:
        print(f"gs://{bucket}/{name}")
    sys.exit(0)

if not flags.get("zone"):
    leave("ERROR: (gcloud) --zone is needed", 2)
group, action, name = words[2:5]

def node_names(resource):
    one, many = resource["flags"].get("node-id"), resource["flags"].get("node-count")
    if bool(one) == bool(many):
        leave("ERROR: argument --node-id | --node-count: exactly one of them must be specified", 2)
    return [one] if one else [f"{resource['flags']['node-prefix']}-{i}" for i in range(int(many))]

def node_of(node):
    return next((r for r in there.values() if node in r["nodes"]), None)

if group == "queued-resources" and action == "create":
    if name in there:
        leave(f"ERROR: (gcloud) ALREADY_EXISTS: {name}")
    known = re.fullmatch(r"(v4|v5litepod|v5p|v6e)-\d+", flags.get("accelerator-type", ""))
    if not known or not flags.get("runtime-version"):
        leave("ERROR: (gcloud) INVALID_ARGUMENT: accelerator type or runtime version")
    resource = {"flags": flags, "bad": ""}
    resource["nodes"] = node_names(resource)
    queue = script.get(name) or []
    resource["states"] = queue.pop(0) if queue else ["ACTIVE"]
    save("states.json", script)
    there[name] = resource
    save("resources.json", there)
    workers = load("sizes.json", {}).get(name, 2)
    for node in resource["nodes"]:
        for i in range(workers):
            os.makedirs(f"{home}/workers/{node}/{i}")
elif group == "queued-resources" and action == "describe":
    if name not in there:
        leave(f"ERROR: (gcloud) NOT_FOUND: Resource '{name}' was not found")
    resource = there[name]
    state = resource["states"][0]
    if len(resource["states"]) > 1:
        resource["states"].pop(0)
        save("resources.json", there)
    flags = resource["flags"]
    labels = dict(l.split("=") for l in flags.get("labels", "").split(",") if l)
    node = {"acceleratorType": flags["accelerator-type"], "labels": labels}
    spec = {"node": node, "nodeId": flags.get("node-id")}
    if flags.get("node-count"):
        several = {"nodeCount": int(flags["node-count"]), "nodeIdPrefix": flags["node-prefix"]}
        spec = {"node": node, "multisliceParams": several}
    print(json.dumps({"name": name, "state": {"state": state}, "tpu": {"nodeSpec": [spec]}}))
elif group == "queued-resources" and action == "delete":
    if name not in there:
        leave(f"ERROR: (gcloud) NOT_FOUND: Resource '{name}' was not found")
    for node in there.pop(name)["nodes"]:
        os.rename(f"{home}/workers/{node}", f"{home}/workers/{node}.deleted{time.time_ns()}")
    save("resources.json", there)
elif group == "tpu-vm" and action == "describe":
    resource = node_of(name)
    if resource is None:
        leave(f"ERROR: (gcloud) NOT_FOUND: Resource '{name}' was not found")
    workers = [] if resource.get("no_endpoints") else os.listdir(f"{home}/workers/{name}")
    print(json.dumps({"name": name, "state": resource["bad"] or "READY", "networkEndpoints": [{}] * len(workers)}))
elif group == "tpu-vm" and action in ("ssh", "scp"):
    node = name if action == "ssh" else words[-1].rstrip(":")
    resource = node_of(node)
    folder = f"{home}/workers/{node}/{flags['worker']}"
    if resource is None or resource["bad"] or not os.path.isdir(folder):
        leave("ssh: connect to host 10.0.0.1 port 22: Connection timed out", 255)
    fcntl.flock(lock, fcntl.LOCK_UN)
    if action == "scp":
        shutil.copy(words[4], folder)
        sys.exit(0)
    extra = load("environment.json", {})
    environment = {"HOME": folder, "PATH": f"{home}/worker_bin:/usr/bin:/bin", **extra}
    environment["LIBTPU_LOCKFILE"] = f"{folder}/libtpu_lockfile"
    os.chdir(folder)
    os.execvpe("bash", ["bash", "-c", flags["command"]], environment)
else:
    leave(f"ERROR: (gcloud) Invalid choice: {words}", 2)
"""
_PYTHON3 = """#!/bin/bash
# An environment whose pip notes what it is asked for; everything else is the tests' Python.
if [ "$1 $2" = "-m venv" ]; then
  folder=${@: -1}
  mkdir -p "$folder/bin"
  cat > "$folder/bin/python" << 'END'
#!/bin/bash
if [ "$1 $2" = "-m pip" ]; then
  echo "$@" >> "$HOME/pip.txt"
  [ ! -e "$HOME/no_index" ] || { echo "ERROR: no matching distribution"; exit 1; }
  exit 0
fi
exec PYTHON "$@"
END
  chmod +x "$folder/bin/python"
  exit 0
fi
exec PYTHON "$@"
"""


class FakeCloud:
    """What a test arranges and looks at."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "worker_bin").mkdir()
        (folder / "workers").mkdir()
        self._program(folder / "bin" / "gcloud", f"#!{sys.executable} -IS\n{_GCLOUD}")
        for name in ("python3", "python3.12"):  # the launcher takes the newest
            self._program(folder / "worker_bin" / name, _PYTHON3.replace("PYTHON", sys.executable))

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def _change(self, name: str, value: object) -> None:
        (self.folder / name).write_text(json.dumps(value), encoding="utf-8")

    def _read(self, name: str, default: object) -> object:
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default

    def states(self, name: str, *creations: Sequence[str]) -> None:
        """The states of each creation; the last one of each stays."""
        self._change("states.json", {**self._read("states.json", {}), name: [list(s) for s in creations]})

    def set_state(self, name: str, *states: str, node: str = "", no_endpoints: bool = False) -> None:
        """Of a resource that is there: the states from now on, and that of its nodes."""
        there = self._read("resources.json", {})
        there[name].update(states=list(states), bad=node, no_endpoints=no_endpoints)
        self._change("resources.json", there)

    def size(self, name: str, workers: int) -> None:
        """Workers of each slice from the next creation on (2 otherwise)."""
        self._change("sizes.json", {name: workers})

    def environment(self, **variables: str) -> None:
        """Variables of every command on a worker."""
        self._change("environment.json", variables)

    def fail(self, match: str, times: int = 1, code: int = 1, stderr: str = "ERROR: (gcloud) UNAVAILABLE") -> None:
        """The next `times` commands that match fail (-1: all)."""
        rule = {"match": match, "times": times, "code": code, "stderr": stderr}
        self._change("rules.json", [*self._read("rules.json", []), rule])

    def heal(self) -> None:
        """No command fails any more."""
        self._change("rules.json", [])

    def calls(self, match: str = "") -> list[str]:
        """The commands that came and match, in order; of scripts by ssh the action and its arguments."""
        path = self.folder / "calls.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [line for line in lines if re.search(match, line)]

    def worker(self, node: str, index: int = 0) -> Path:
        """A worker's home folder."""
        return self.folder / "workers" / node / str(index)

    def attempts(self, node: str, index: int = 0) -> list[Path]:
        """The attempts on a worker, oldest first."""
        return sorted((self.worker(node, index) / "mmed_jax_pod" / "attempts").glob("*"))

    def kill(self, node: str, index: int = 0) -> None:
        """Ends what runs on a worker as a power cut does."""
        for pid in self.worker(node, index).glob("mmed_jax_pod/attempts/*/pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)

    def preempt(self, name: str, state: str = "SUSPENDED") -> None:
        """Takes the slices of a resource away."""
        for node in self._read("resources.json", {})[name]["nodes"]:
            for worker in (self.folder / "workers" / node).glob("*"):
                self.kill(node, int(worker.name))
        self.set_state(name, state, node="PREEMPTED")

    def end_all(self) -> None:
        """Ends whatever still runs on any worker."""
        for pid in self.folder.glob("workers/*/*/mmed_jax_pod/attempts/*/pid"):
            if not (pid.parent / "exit").exists():
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.killpg(int(pid.read_text()), signal.SIGKILL)


@contextlib.contextmanager
def fake_gcloud(folder: Path) -> Iterator[FakeCloud]:
    """The fake in FOLDER, at the front of PATH while the block runs; ends what runs on its workers afterwards."""
    cloud = FakeCloud(folder)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder / 'bin'}:{before}"
    try:
        yield cloud
    finally:
        os.environ["PATH"] = before
        cloud.end_all()
        shutil.rmtree(folder, ignore_errors=True)
