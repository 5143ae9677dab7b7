"""The launcher for TPU VMs against a gcloud that is this machine: every command really runs, in folders as workers."""

import os
import re
import subprocess
import threading
import time

import pytest
import yaml

from mmed_jax.common.errors import UserError, WorkError
from scripts.pod import checkout as checkout_module
from scripts.pod.__main__ import main
from scripts.pod.gcloud import Pace
from scripts.pod.resources import parse_slice
from tests.support.fake_gcloud import fake_gcloud
from tests.support.fake_gcs import fake_gcs
from tests.support.training import REPO, SLOWLY, STEPS, WAIT, bench, reproduced  # noqa: F401

QUICK = Pace(poll=0.25, state=0.01, retry=0.1, tries=3, grace=1.0, unreachable=2.0, stop=10.0, command=30.0)
# What a run does, by the files of its run directory: a checkpoint, then the exit code that `codes` has for it.
TRAIN = r"""
trap 'echo "saved at step 7"; exit 75' TERM
run=$1
mkdir -p "$run/checkpoints"
echo "started with $*"
[ ! -e "$HOME/code" ] || { echo "this host is broken"; exit "$(cat "$HOME/code")"; }
[ ! -e "$run/sleep" ] || { sleep 30 & wait $!; }
[[ $HOME =~ /mmed(-0)?/0$ ]] || exit 0 # one worker writes
step=$(( $(ls "$run/checkpoints" | sort -n | tail -n 1) + 1 ))
[ -e "$run/no_progress" ] || { mkdir -p "$run/checkpoints/$step" && touch "$run/checkpoints/$step/commit_success.txt"; }
code=$(sed -n "${step}p" "$run/codes" 2> /dev/null)
echo "step $step"
exit ${code:-0}
"""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A small git repository in place of this checkout, with a stand-in for training."""
    root = tmp_path / "repo"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "train.sh").write_text(TRAIN)
    (root / "constraints.txt").write_text("jax\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    monkeypatch.setattr(checkout_module, "REPO", root)
    return root


def git(root, *arguments):
    name = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *name, *arguments], check=True, capture_output=True)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    for name, value in {"TPU_NAME": "mmed", "ZONE": "us-east5-a", "TPU_TYPE": "v5e-8", "PROJECT": "p"}.items():
        monkeypatch.setenv(name, value)
    with fake_gcloud(tmp_path / "cloud") as fake:
        yield fake


def pod(*arguments, pace=QUICK):
    """The exit code of a launcher's command."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments], pace)
    return ended.value.code or 0


def train(run_dir):
    return "--", "bash", "scripts/train.sh", str(run_dir), f"--config.run_dir={run_dir}"


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def storage(monkeypatch):
    """A server of buckets, here and for what runs on workers that are told of it."""
    with fake_gcs("bucket") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def eventually(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


def has_begun(cloud, index=0):
    """Whether the command has written something on a worker."""
    return any((a / "log").exists() and (a / "log").read_text() for a in cloud.attempts("mmed", index))


def in_background(*arguments):
    """A launcher's command in a thread: (thread, list that will hold its exit code)."""
    codes = []

    def work():
        try:
            main([str(a) for a in arguments], QUICK)
        except SystemExit as e:
            codes.append(e.code or 0)
        except Exception as e:
            codes.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, codes


# -- names and requests


@pytest.mark.parametrize(
    "name, kind, workers, chips_a_vm",
    [
        ("v5e-64", "v5litepod-64", 16, 4),
        ("v5litepod-64", "v5litepod-64", 16, 4),
        ("v5e-8", "v5litepod-8", 1, 8),
        ("v6e-256", "v6e-256", 64, 4),
        ("v5p-128", "v5p-128", 16, 4),
        ("2xv5p-128", "v5p-128", 16, 4),
        ("v4-8", "v4-8", 1, 4),
    ],
)
def test_the_planners_names(name, kind, workers, chips_a_vm):
    slices = parse_slice(name)
    assert (slices.accelerator_type, slices.workers, slices.chips_a_vm) == (kind, workers, chips_a_vm)
    assert slices.slices == (2 if name.startswith("2x") else 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tpu=v5e-63"], "--tpu=v5e-63: no such slice, did you mean 'v5e-64'?"),
        (["--tpu=0xv5e-64"], "no such slice"),
        (["--tpu=v5e-8", "--spot", "--reserved"], "only one"),
        (["--tpu=v5e-8", "--flex_start"], "--max_run_duration"),
        (["--tpu=v5e-8", "--max_run_duration=7d"], "goes with --flex_start"),
        (["--tpu=v5e-8", "--flex_start", "--max_run_duration=a week"], "not a duration"),
        (["--tpu=tpu7x-128"], "the Cloud TPU API does not serve tpu7x; `up --gke`"),
        (["--tpu=v5e-8", "--name=Mmed"], "--name=Mmed: small letters"),
        (["--tpu=v5e-8", "--zone="], "--zone is missing, or ZONE"),
        (["--tpu=v5e-8", "--spott"], "unrecognized arguments: --spott, did you mean '--spot'?"),
        (["--tpu=v5e-8", "--", "true"], "up takes no command"),
    ],
)
def test_a_wrong_order_is_one_line_before_anything_is_asked(cloud, repo, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        main(["up", *arguments], QUICK)
    assert cloud.calls("create") == []


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            ["--tpu=v5e-64", "--spot"],
            "--node-id=mmed --accelerator-type=v5litepod-64 --runtime-version=v2-alpha-tpuv5-lite --spot",
        ),
        (
            ["--tpu=2xv5p-128"],
            "--node-count=2 --node-prefix=mmed --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5",
        ),
        (
            ["--tpu=v6e-8", "--flex_start", "--max_run_duration=12h"],
            "gcloud alpha compute tpus queued-resources create mmed --node-id=mmed --accelerator-type=v6e-8 "
            "--runtime-version=v2-alpha-tpuv6e --provisioning-model=flex-start --max-run-duration=12h",
        ),
    ],
)
def test_a_dry_run_prints_the_request(cloud, repo, capfd, flags, words):
    assert pod("up", "--dry_run", *flags) == 0
    printed = capfd.readouterr().out
    assert words in printed
    assert cloud.calls() == []


# -- Kubernetes


def test_the_manifest_of_a_jobset(tmp_path, capfd):
    """What the YAML says, for two slices of spot machines and for TPU7x, which there is no queued resource of."""
    out = tmp_path / "pod.yaml"
    command = [
        "python",
        "-m",
        "mmed_jax.train",
        "--config=stage1:8b",
        "--config.run_dir=gs://b/it's $HOME: {x}",
        "--a=$(x)",
    ]
    flags = ["--gke", "--name=mmed", "--image=eu/i:1", "--service_account=trainer", "--max_restarts=4"]
    assert pod("up", *flags, "--tpu=2xv5p-128", "--spot", f"--output={out}", "--", *command) == 0
    assert capfd.readouterr().out == f"kubectl apply -f {out}\n"
    manifest = yaml.safe_load(out.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "mmed"
    spec = manifest["spec"]
    (slices,) = spec["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 16, 16, 0)
    stopped, disrupted = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    assert stopped["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [75]}
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    (restart,) = spec["failurePolicy"]["rules"]
    assert spec["failurePolicy"]["maxRestarts"] == 4
    assert restart["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert restart["onJobFailureReasons"] == ["PodFailurePolicy"]
    machine = job["template"]["spec"]
    assert machine["serviceAccountName"] == "trainer" and machine["restartPolicy"] == "Never"
    assert machine["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    # Kubernetes puts a variable in the place of $(x), and $(x) in that of $$(x).
    assert container["command"] == [*command[:-1], "--a=$$(x)", "--config.distributed.expect_processes=32"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}

    assert pod("up", *flags, "--tpu=tpu7x-128", "--", *command) == 0
    job = yaml.safe_load(capfd.readouterr().out)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == 16
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu7x",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["up", "--gke", "--tpu=v6e-8"], "--image"),
        (["up", "--gke", "--tpu=v6e-8", "--image=i"], "needs the command"),
        (["up", "--gke", "--tpu=", "--image=i", "--", "x"], "--tpu=NAME"),
        (["up", "--gke", "--tpu=v6e-8", "--image=i", "--", "x", "--config.run_dir=/mnt/r"], "a pod's disk goes"),
        (["up", "--gke", "--tpu=v6e-8", "--image=i", "--name=A_b", "--", "x"], "--name=A_b"),
        (["watch", "--gke", "--", "x"], "--gke goes with up"),
        (["watch", "--dry_run", "--", "x"], "--dry_run goes with up"),
        (["run", "--follow=-1", "--", "x"], "--follow=-1"),
        (["run"], "run -- COMMAND"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        main(arguments, QUICK)


# -- the slice and what is installed on it


def test_up_waits_installs_and_does_nothing_twice(cloud, repo, capfd):
    cloud.states("mmed", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    assert pod("up") == 0
    printed = capfd.readouterr().out
    assert re.findall(r"mmed: ([A-Z_]+)", printed) == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    home = cloud.worker("mmed", 1)
    pip = (home / "pip.txt").read_text()
    assert "-c constraints.txt -e .[tpu,gcs]" in pip and (home / "mmed_jax_pod/source/scripts/train.sh").exists()
    before = len(cloud.calls())
    assert pod("up") == 0
    assert not [c for c in cloud.calls()[before:] if re.search("scp|create|install ", c)]

    (home / "mmed_jax_pod/source/runs").mkdir()
    (repo / "added.py").write_text("")
    git(repo, "rm", "-q", "scripts/train.sh")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "second")
    assert pod("up") == 0  # another commit, the same requirements: no pip; what a run wrote stays
    source = home / "mmed_jax_pod/source"
    assert (source / "added.py").exists() and (source / "runs").exists() and not (source / "scripts/train.sh").exists()
    assert (home / "pip.txt").read_text() == pip
    (repo / "constraints.txt").write_text("jax==0.11\n")
    git(repo, "commit", "-qam", "third")
    assert pod("up") == 0
    assert len((home / "pip.txt").read_text().splitlines()) == 2 * len(pip.splitlines())


def test_what_cannot_be_set_up_is_named(cloud, repo, monkeypatch):
    pod("up")
    (cloud.worker("mmed", 1) / "no_index").touch()
    (repo / "constraints.txt").write_text("jax==0.11\n")
    git(repo, "commit", "-qam", "second")
    with pytest.raises(WorkError, match="worker 1: pip: ERROR: no matching distribution"):
        main(["up"], QUICK)
    monkeypatch.setattr(checkout_module, "LEAST_FREE_MIB", 2**40)
    with pytest.raises(UserError, match=r"worker 1: only [\d.]+ GiB free"):
        main(["up"], QUICK)
    with pytest.raises(UserError, match="mmed is there already as 1 x v5litepod-8"):
        main(["up", "--tpu=v5e-16"], QUICK)


@pytest.mark.parametrize(
    "arrange, message, asked",
    [
        (lambda c: c.fail("describe", times=-1), "UNAVAILABLE (asked 3 times)", 3),
        (lambda c: c.states("mmed", ["PROVISIONING", ""]), "the state ''", 5),
        (lambda c: c.states("mmed", ["SUSPENDING"]), "mmed is SUSPENDING", 2),
        (lambda c: c.states("mmed", ["CREATING", "FAILED"]), "mmed is FAILED", 3),
    ],
)
def test_no_endless_wait_for_a_slice(cloud, repo, arrange, message, asked):
    arrange(cloud)
    with pytest.raises(WorkError, match=re.escape(message)):
        main(["up"], QUICK)
    assert len(cloud.calls("queued-resources describe")) == asked


def test_a_slice_without_workers_and_one_that_is_not_there(cloud, repo):
    with pytest.raises(UserError, match="there is no queued resource mmed in us-east5-a"):
        main(["run", "--", "true"], QUICK)
    pod("up")
    cloud.set_state("mmed", "ACTIVE", no_endpoints=True)
    with pytest.raises(UserError, match="names no workers"):
        main(["run", "--", "true"], QUICK)
    cloud.set_state("mmed", "ACTIVE", node="PREEMPTED")
    with pytest.raises(WorkError, match="mmed is PREEMPTED"):
        main(["run", "--", "true"], QUICK)
    with pytest.raises(UserError, match="there is no queued resource mmed2 in us-east5-a of p: nothing was deleted"):
        main(["down", "--name=mmed2"], QUICK)
    assert cloud.worker("mmed").exists()
    assert pod("down") == 0 and not cloud.worker("mmed").exists()


def test_local_changes_are_refused_or_carried(cloud, repo, run_dir):
    cloud.size("mmed", 1)
    pod("up")
    (repo / "notes.txt").write_text("no code: stays here\n")
    (repo / "scripts/train.sh").write_text("echo changed\n")
    (repo / "scripts/new.py").write_text("")
    with pytest.raises(UserError, match="scripts/new.py, scripts/train.sh.*--carry_changes"):
        main(["run", *train(run_dir)], QUICK)
    assert pod("run", "--carry_changes", *train(run_dir)) == 0
    (attempt,) = cloud.attempts("mmed")
    assert (attempt / "log").read_text() == "changed\n"
    commit, changes = (attempt / "commit").read_text().splitlines()
    assert re.fullmatch("[0-9a-f]{40}", commit) and re.fullmatch("changes [0-9a-f]{12}", changes)
    source = cloud.worker("mmed") / "mmed_jax_pod/source"
    assert (source / "scripts/new.py").exists() and not (source / "notes.txt").exists()


# -- a run


def test_a_run_on_two_slices_ends_with_its_exit_code(cloud, repo, run_dir, capfd):
    assert pod("up", "--tpu=2xv5e-8") == 0
    (run_dir / "codes").write_text("75\n0\n")
    assert pod("run", *train(run_dir)) == 75
    printed = capfd.readouterr().out
    assert (
        "[0/0] step 1\n" in printed and "[1/1] started with" in printed and "exit code 75; the same command" in printed
    )
    assert pod("run", *train(run_dir)) == 0
    for node in ("mmed-0", "mmed-1"):
        for index in (0, 1):
            first, second = cloud.attempts(node, index)
            assert {p.name for p in second.iterdir()} == {"command", "commit", "step", "tries", "pid", "log", "exit"}
            assert "started with" in (first / "log").read_text()  # each attempt has its own log
    assert (cloud.attempts("mmed-0")[0] / "exit").read_text().startswith("75 ")
    assert "bash scripts/train.sh" in (second / "command").read_text()
    assert pod("logs") == 0 and "step 2" in capfd.readouterr().out


def test_the_first_worker_that_fails_is_named_and_the_others_are_ended(cloud, repo, run_dir, capfd):
    pod("up")
    (run_dir / "sleep").touch()
    (cloud.worker("mmed", 1) / "code").write_text("3")
    assert pod("run", *train(run_dir)) == 3
    printed = capfd.readouterr().out
    assert "worker 1 failed first, with exit code 3" in printed
    assert "this host is broken" in printed.partition("the last lines of worker 1")[2]
    assert (cloud.attempts("mmed", 0)[0] / "exit").read_text().startswith("75 ")


def test_a_killed_run_is_no_success(cloud, repo, run_dir, capfd):
    cloud.size("mmed", 1)
    pod("up")
    (run_dir / "sleep").touch()
    thread, codes = in_background("run", *train(run_dir))
    eventually(lambda: has_begun(cloud))
    cloud.kill("mmed")
    thread.join(120)
    assert codes == [1] and "worker 0 failed first" in capfd.readouterr().out


def test_a_second_run_is_refused_and_stop_ends_the_run_alone(cloud, repo, run_dir, capfd):
    pod("up")
    (run_dir / "sleep").touch()
    decoy = subprocess.Popen(["bash", "-c", "exec -a mmed_jax.doctor sleep 60"])
    thread, codes = in_background("run", *train(run_dir))
    eventually(lambda: all(has_begun(cloud, i) for i in (0, 1)))
    with pytest.raises(UserError, match=r"worker 0: attempt \S+ is going on \(bash scripts/train.sh"):
        main(["run", *train(run_dir)], QUICK)
    (repo / "added.py").write_text("")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "second")
    with pytest.raises(UserError, match="a run of another commit is going on there"):
        main(["up"], QUICK)
    assert pod("stop") == 0
    thread.join(120)
    assert codes == [75] and decoy.poll() is None
    decoy.kill()
    decoy.wait()
    printed = capfd.readouterr().out
    assert "[0] exit code 75: saved at step 7" in printed and "[1] exit code 75" in printed
    assert [len(cloud.attempts("mmed", i)) for i in (0, 1)] == [1, 1]
    assert pod("stop") == 0 and "nothing is going on" in capfd.readouterr().out


@pytest.mark.parametrize("fault", ["folder", "ssh"])
def test_what_does_not_start_on_one_worker_starts_on_none(cloud, repo, run_dir, fault):
    pod("up")
    (run_dir / "sleep").touch()
    if fault == "folder":
        attempts = cloud.worker("mmed", 1) / "mmed_jax_pod" / "attempts"
        attempts.rmdir()
        attempts.write_text("")
        message = "not started: worker 1: cannot write in"
    else:
        cloud.fail("--worker=1 --command=start", code=255, stderr="ssh: connect to host: Connection refused")
        message = "not started: worker 1: ssh: ssh: connect to host: Connection refused"
    with pytest.raises(WorkError, match=re.escape(message)):
        main(["run", *train(run_dir)], QUICK)
    for attempt in cloud.attempts("mmed", 0):
        assert (attempt / "exit").read_text().startswith("75 ")


def test_a_stale_libtpu_lock_goes_and_one_that_is_held_stays(cloud, repo, run_dir):
    cloud.size("mmed", 1)
    pod("up")
    lock = cloud.worker("mmed") / "libtpu_lockfile"
    lock.touch()
    assert pod("run", *train(run_dir)) == 0 and not lock.exists()
    with open(lock, "w"):
        with pytest.raises(WorkError, match=r"the TPU is in use: process \d+ \("):
            main(["run", *train(run_dir)], QUICK)
    assert lock.exists()


# -- watch


def test_training_that_is_preempted_in_mid_run_ends_with_the_losses_of_one_that_was_not(bench, cloud, repo, storage):  # noqa: F811
    """The real train in a bucket: killed with its machine after a checkpoint, it goes on from there on a new slice."""
    run = "gs://bucket/run"
    cloud.size("mmed", 1)
    flags = {name: os.environ[name] for name in ("JAX_PLATFORMS", "XLA_FLAGS", "HF_HUB_OFFLINE")}
    cloud.environment(PYTHONPATH=str(REPO), **flags, **storage.environment)
    thread, codes = in_background("watch", "--spot", "--", "python", *SLOWLY[1:], *bench.argv(run))
    last = re.compile(r"run/checkpoints/\d+/commit_success.txt")
    eventually(lambda: any(last.fullmatch(name) for name in storage.names("bucket", "run/checkpoints/")), WAIT)
    cloud.preempt("mmed")
    storage.advance(3600)  # the lock of the one that was killed is old
    thread.join(WAIT)
    assert codes == [0] and len(cloud.calls("queued-resources create")) == 2
    (second,) = cloud.attempts("mmed")
    assert f"of {STEPS}" in (second / "log").read_text().partition("resumed    step ")[2].splitlines()[0]
    assert reproduced(run) == reproduced(bench.reference)


def watch(run_dir, *flags):
    return ["watch", *flags, *train(run_dir)]


def test_watch_goes_on_after_preemption_in_mid_run_until_the_run_is_finished(cloud, repo, run_dir, capfd):
    cloud.states("mmed", ["ACTIVE"], ["WAITING_FOR_RESOURCES", "ACTIVE"])
    (run_dir / "codes").write_text("75\n75\n0\n")
    (run_dir / "checkpoints").mkdir()
    (run_dir / "sleep").touch()
    thread, codes = in_background(*watch(run_dir, "--spot"))
    eventually(lambda: all(has_begun(cloud, i) for i in (0, 1)))
    cloud.preempt("mmed")
    (run_dir / "sleep").unlink()
    thread.join(120)
    assert codes == [0]
    printed = capfd.readouterr().out
    assert "workers are gone: mmed is SUSPENDED" in printed and "deleted and asked for again" in printed
    create = cloud.calls("queued-resources create")
    assert len(create) == 2 and "--spot" in create[1] and "--labels=mmed_jax_step=none,mmed_jax_tries=2" in create[1]
    assert len(cloud.attempts("mmed")) == 3  # 75, 75, 0 on the new slice
    assert [(a / "tries").read_text().strip() for a in cloud.attempts("mmed")] == ["2", "1", "1"]


def test_a_command_of_any_characters_is_known_again_and_secrets_are_not_shown(cloud, repo, run_dir, capfd):
    """Arguments reach the command as they are, also where a worker's locale is C; keys stand in no line of ours."""
    cloud.size("mmed", 1)
    (run_dir / "sleep").touch()
    odd = ['it\'s "modèle" $HOME `id` *\ttab\nline', "HF_TOKEN=hf_1234", "--config.tokenizer=t"]
    odd += ["--api_key", "sk-5678"]
    thread, codes = in_background("watch", *train(run_dir), *odd)
    eventually(lambda: has_begun(cloud))
    again, codes_again = in_background("watch", *train(run_dir), *odd)
    printed = []
    eventually(lambda: printed.append(capfd.readouterr().out) or "is going on" in "".join(printed) or codes_again)
    (attempt,) = cloud.attempts("mmed")
    assert attempt.stat().st_mode & 0o077 == 0
    with pytest.raises(UserError, match="is going on") as refused:
        main(["run", "--", "true"], QUICK)
    assert pod("stop") == 0
    for each in (thread, again):
        each.join(120)
    assert codes == codes_again == [75]
    log = (attempt / "log").read_text()
    assert f"started with {run_dir} --config.run_dir={run_dir} {' '.join(odd)}\n" in log
    printed.append(capfd.readouterr().out)
    lines = [line for line in "".join(printed).splitlines() if not line.startswith("[0] ")]  # those are the run's own
    ours = "\n".join([*lines, str(refused.value)])
    assert "HF_TOKEN=***" in ours and "--config.tokenizer=t --api_key '***'" in ours
    assert "hf_1234" not in ours and "sk-5678" not in ours


def test_watch_gives_up_after_three_attempts_without_a_checkpoint(cloud, repo, run_dir):
    cloud.size("mmed", 1)
    (run_dir / "no_progress").touch()
    (run_dir / "codes").write_text("1\n")
    assert pod("up") == 0 and pod("run", "--", "false") == 1  # another command's attempt counts for nothing
    with pytest.raises(WorkError, match="3 attempts have brought no checkpoint at all in"):
        main(watch(run_dir), QUICK)
    assert len(cloud.attempts("mmed")) == 4
    # Another watch knows of them from the workers, and of those on a slice that is gone from its labels.
    with pytest.raises(WorkError, match="3 attempts have brought"):
        main(watch(run_dir), QUICK)
    assert len(cloud.attempts("mmed")) == 4 and len(cloud.calls("queued-resources create")) == 1


def test_watch_survives_its_own_end(cloud, repo, run_dir, capfd):
    cloud.size("mmed", 1)
    (run_dir / "sleep").touch()
    looks = []

    class Interrupted(Pace):
        def sleep(self, seconds):
            looks.append(seconds)
            if cloud.attempts("mmed") and len(looks) > 3:
                raise KeyboardInterrupt
            time.sleep(seconds)

    with pytest.raises(KeyboardInterrupt):
        main(watch(run_dir), Interrupted(**vars(QUICK)))
    thread, codes = in_background(*watch(run_dir))
    eventually(lambda: "is going on" in capfd.readouterr().out)
    with pytest.raises(UserError, match="another command is going on there"):
        main(["watch", *train(run_dir), "--more"], QUICK)
    assert pod("stop") == 0
    thread.join(120)
    assert codes == [75] and len(cloud.attempts("mmed")) == 1  # somebody has stopped it, so it is not started again
    (run_dir / "sleep").unlink()
    assert pod(*watch(run_dir)) == 0
    assert pod(*watch(run_dir)) == 0  # finished already
    assert len(cloud.attempts("mmed")) == 2


def test_a_machine_that_is_repaired_is_waited_for_and_one_that_stays_silent_is_not(cloud, repo, run_dir, capfd):
    (run_dir / "sleep").touch()
    thread, codes = in_background(*watch(run_dir))
    eventually(lambda: all(has_begun(cloud, i) for i in (0, 1)))
    cloud.set_state("mmed", "ACTIVE", node="REPAIRING")
    looks = len(cloud.calls("tpu-vm describe"))
    eventually(lambda: len(cloud.calls("tpu-vm describe")) > looks)
    cloud.set_state("mmed", "ACTIVE")
    silence = "--worker=1 --command=state 2"  # not when it is asked for the newest attempt
    cloud.fail(silence, times=-1, code=255, stderr="ssh: connect to host: Connection timed out")
    eventually(lambda: len(cloud.calls("queued-resources create")) == 2)
    (run_dir / "sleep").unlink()
    cloud.heal()
    thread.join(120)
    assert codes == [0] and len(cloud.calls("queued-resources delete")) == 1
    printed = capfd.readouterr().out
    assert re.search(r"worker 1 is not reached for \d+ s, though .*timed out: the slice is deleted", printed)


def test_watch_ends_on_wrong_input_and_without_a_run_dir(cloud, repo, run_dir):
    cloud.size("mmed", 1)
    (run_dir / "codes").write_text("2\n")
    assert pod(*watch(run_dir)) == 2 and len(cloud.attempts("mmed")) == 1
    with pytest.raises(UserError, match="--config.run_dir=gs://BUCKET/FOLDER"):
        main(["watch", "--", "bash", "scripts/train.sh"], QUICK)


def test_watch_reads_checkpoints_from_the_bucket(cloud, repo, storage):
    """Only a step with its last file counts; a bucket that cannot be read is no run without checkpoints."""
    cloud.size("mmed", 1)
    cloud.environment(**storage.environment)
    for name in ("9/manifest.ocdbt", "9/params/commit_success.txt", "4/commit_success.txt", "3/commit_success.txt"):
        storage.write("bucket", f"run/checkpoints/{name}", b"")
    command = ["--", "bash", "-c", "exit 1", "--config.run_dir=gs://bucket/run"]
    with pytest.raises(WorkError, match="no checkpoint after step 4 in gs://bucket/run"):
        main(["watch", *command], QUICK)
    assert (cloud.attempts("mmed")[0] / "step").read_text() == "4\n"
    cloud.fail("storage ls", times=-1, stderr="ERROR: HTTPError 403")
    with pytest.raises(WorkError, match="HTTPError 403"):
        main(["watch", *command], QUICK)
    assert len(cloud.attempts("mmed")) == 3
