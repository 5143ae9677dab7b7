"""The launcher for TPU VMs against a gcloud that is this machine: every command really runs, in folders as workers."""

import re
import subprocess
import threading
import time

import pytest

from mmed_jax.common.errors import UserError
from scripts.pod import checkout as checkout_module
from scripts.pod.__main__ import main
from scripts.pod.pace import Pace
from scripts.pod.slice_names import parse_slice
from tests.support.fake_gcloud import fake_gcloud

QUICK = Pace(poll=0.1, state=0.01, retry=0.01, tries=3, grace=1.0, unreachable=1.0, stop=10.0, command=30.0)
# What a run does, by the files of its run directory: a checkpoint, then the exit code that `codes` has for it.
TRAIN = r"""
run=$1
mkdir -p "$run/checkpoints"
echo "started with $*"
trap 'echo "saved at step 7"; exit 75' TERM
[ ! -e "$run/sleep" ] || { sleep 30 & wait $!; }
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


def eventually(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


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
            "--runtime-version=v2-alpha-tpuv6e --provisioning-model=flex-start --max-run-duration=12h",
        ),
    ],
)
def test_a_dry_run_prints_the_commands(cloud, repo, capfd, flags, words):
    assert pod("up", "--dry_run", *flags) == 0
    printed = capfd.readouterr().out
    assert words in printed and "tpu-vm scp" in printed and "--command='bash -c SCRIPT on_worker install" in printed
    assert cloud.calls() == []
