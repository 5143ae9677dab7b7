"""A tiny model and a dozen records for tests of whole training runs, in this process or in their own."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mmed_jax import train
from mmed_jax.checkpoints.metrics_file import Records, read_metrics
from mmed_jax.checkpoints.restore import flatten
from mmed_jax.checkpoints.run_directory import read_meta, step_folders
from mmed_jax.common.errors import run_command
from tests.support import preloaded
from tests.support.preloaded import Forked
from tests.support.tokenizer import tiny_tokenizer

REPO = Path(__file__).resolve().parents[2]
WAIT = 300  # seconds that a process may take on a busy machine

STEPS = 24

# Divides over 8 devices along every axis.
MODEL = {
    "model.hidden_size": 32,
    "model.num_layers": 2,
    "model.num_heads": 8,
    "model.num_kv_heads": 8,
    "model.head_dim": 4,
    "model.intermediate_size": 64,
    "model.vocab_size": 400,
    "model.max_position_embeddings": 256,
}
RUN = {
    "data.seq_len": 128,
    "batch_size": 8,
    "epochs": 0,
    "steps": STEPS,
    "optim.lr": 1e-2,
    "log_every": 1,
    "checkpoint.every_steps": 6,
    "checkpoint.every_minutes": 0,
    "checkpoint.keep_last": 10,
    "tensorboard": False,
    # A step that runs dozens of times is worth a compiler that takes more care than with the programs of other tests.
    "xla_flags": "xla_backend_optimization_level=1",
}
# Training in a process of its own, a tenth of a second a step, so that a test can hit the step it means.
SLOWLY = (
    sys.executable,
    "-c",
    """
import time
from mmed_jax import train
from mmed_jax.common import errors
from mmed_jax.training import setup
check = setup.check_finite
def slow_check(*args):
    time.sleep(0.1)
    check(*args)
setup.check_finite = slow_check
errors.run_command(train.main)
""",
)
# The same with validations that take minutes; one that has begun leaves a file `validating` in the run directory.
VALIDATING = (
    *SLOWLY[:2],
    """
import pathlib, sys, time
from mmed_jax.training import validation
batches = validation.eval_batches
run = next(a.partition("=")[2] for a in sys.argv if a.startswith("--config.run_dir="))
def many_batches(*args, **keys):
    for _ in range(2000):
        for batch in batches(*args, **keys):
            yield batch
            pathlib.Path(run, "validating").touch()
            time.sleep(0.05)
validation.eval_batches = many_batches
"""
    + SLOWLY[2],
)

FINDINGS = {
    "en": ("fever", "cough", "pain", "rash", "nausea", "thirst", "fatigue", "pallor"),
    "zh": ("发热", "咳嗽", "疼痛", "皮疹", "恶心", "口渴", "乏力", "苍白"),
    "fr": ("la fièvre", "la toux", "la douleur", "le rash", "la nausée", "la soif", "la fatigue", "la pâleur"),
}


def instructions(languages: tuple[str, ...] = ("en", "zh", "fr")) -> list[dict]:
    """Eight short question-answer pairs a language."""
    ask = {"en": "What treats {}?", "zh": "{}如何治疗？", "fr": "Que faire contre {} ?"}
    answer = {"en": "Drug {} treats {}.", "zh": "药{}治疗{}。", "fr": "Le {} traite {}."}
    return [
        {
            "id": f"{lang}-{i}",
            "language": lang,
            "source": "test",
            "messages": [
                {"role": "user", "content": ask[lang].format(finding)},
                {"role": "assistant", "content": answer[lang].format("ABCDEFGH"[i], finding)},
            ],
        }
        for lang in languages
        for i, finding in enumerate(FINDINGS[lang])
    ]


def questions() -> list[dict]:
    """Six multiple-choice records in English."""
    return [
        {
            "id": f"q{i}",
            "language": "en",
            "question": f"{finding}?",
            "options": {"A": "yes", "B": "no"},
            "answer_idx": "AB"[i % 2],
            "rationale": f"Because of {finding}.",
            "source": "test",
        }
        for i, finding in enumerate(FINDINGS["en"][:6])
    ]


def unseen(path: Path) -> Path:
    """A file of validation records whose questions and answers no training record gives."""
    records = instructions()
    for r in records:
        r["id"] += "-held-out"
        r["messages"][0]["content"] += " 73?"
        r["messages"][1]["content"] = "@@ 0x19 ##"
    return write_jsonl(path, records)


def write_jsonl(path: Path, records: list[dict]) -> Path:
    """Records as JSON lines, unchecked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code and text."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its one `error: ...` line, the only thing on stderr. Fails when there is anything else."""
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0].removeprefix("error: ")


def call(main: Callable[[list[str]], None], *argv: str) -> Outcome:
    """Runs a command's main in this process, as `python -m` would, with its output caught."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(lambda: main([str(a) for a in argv]))
        except SystemExit as e:
            code = e.code or 0
    return Outcome(code, out.getvalue(), err.getvalue())


def train_here(*argv: str) -> Outcome:
    """Training in this process, whose allocator stays as other tests expect it."""
    with mock.patch.object(train, "keep_freed_memory"):
        return call(train.main, *argv)


class Bench:
    """Files that all training tests share: tokenizer, records, packed tables and compiled programs."""

    def __init__(self, base: Path):
        self.folder = base / "train"
        self.tokenizer = tiny_tokenizer(self.folder)
        self.records = write_jsonl(self.folder / "stage1.jsonl", instructions())
        self.questions = write_jsonl(self.folder / "stage2.jsonl", questions())
        # The cache keeps the first folder it was used with; a test before may have used it without any.
        jax.experimental.compilation_cache.compilation_cache.reset_cache()

    def argv(self, run_dir: Path, stage: str = "stage1", **changes: object) -> list[str]:
        """The command line of a run. Keys of `changes` have `__` for the dots of config keys; None = not given."""
        if stage == "stage1":
            keys = {**MODEL, "tokenizer": self.tokenizer, "data.train": self.records}
        else:
            keys = {"data.train": self.questions}
        shared = {"data.cache_dir": self.folder / "packed", "compile_cache": self.folder / "compiled"}
        keys = keys | RUN | shared | {"run_dir": run_dir} | {k.replace("__", "."): v for k, v in changes.items()}
        return [f"--config={stage}", *(f"--config.{k}={v}" for k, v in keys.items() if v is not None)]

    def train(self, run_dir: Path, stage: str = "stage1", **changes: object) -> Outcome:
        """A run in this process; see train_here."""
        return train_here(*self.argv(run_dir, stage, **changes))

    def start(
        self,
        run_dir: Path,
        stage: str = "stage1",
        *,
        devices: int = 8,
        command: tuple[str, ...] = (sys.executable, "-m", "mmed_jax.train"),
        cwd: Path | None = None,
        more: tuple[str, ...] = (),
        fresh: bool = False,
        apart: int = 0,
        **changes: object,
    ) -> subprocess.Popen | Forked:
        """A run in a process of its own, with so many simulated devices; `cwd`: where its relative paths begin,
        `more`: further arguments, `fresh`: with an interpreter of its own, `apart`: see preloaded.start.

        Their number sizes XLA's thread pools and with them the order of some sums: 8 as in this process, and what else
        says how machine code is made is as here.
        """
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": re.sub(r"(?<=device_count=)\d+", str(devices), os.environ["XLA_FLAGS"]),
            "PYTHONPATH": str(REPO),
        }
        argv = [*command, *self.argv(run_dir, stage, **changes), *more]
        if not fresh and sys.platform == "linux":
            return preloaded.start(argv, cwd=cwd or self.folder, env=env, apart=apart)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(argv, cwd=cwd or self.folder, env=env, **pipes)

    def start_two(
        self, run_dir: Path, *, second: dict[str, object] | None = None, **changes: object
    ) -> list[subprocess.Popen | Forked]:
        """A run of two processes with four simulated devices each, joined over gloo; `second`: its own changes.

        They compile for themselves and take few steps: machine code is made as in other tests.
        """
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        joined = {"mesh__devices": 0, "distributed__coordinator": f"127.0.0.1:{port}", "distributed__num_processes": 2}
        joined |= {"distributed__expect_processes": 2, "distributed__timeout_seconds": WAIT, "xla_flags": "none"}
        first = {"devices": 4, "run_dir": run_dir, **joined, **changes, "distributed__process_id": 0}
        if not changes.get("fresh") and sys.platform == "linux":
            preloaded.prepare(0, 1)
        other = {"distributed__process_id": 1, "apart": 1} | (second or {})
        return [self.start(**first), self.start(**first | other)]

    @functools.cached_property
    def reference(self) -> Path:
        """24 uninterrupted steps on one device, with checkpoints at 6, 12, 18 and 24, and a report with its plots."""
        return self._run("reference")

    @functools.cached_property
    def fsdp8(self) -> Path:
        """The same on 8 devices."""
        return self._run("fsdp8", mesh__devices=8)

    def _run(self, name: str, **changes: object) -> Path:
        outcome = self.train(self.folder / name, **changes)
        assert outcome.code == 0 and not outcome.err.startswith("error"), outcome.err
        return self.folder / name


@functools.cache
def _bench(base: Path) -> Bench:
    return Bench(base)


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    """The one bench of this session, whichever test module asks."""
    return _bench(tmp_path_factory.getbasetemp())


def finish(*processes: subprocess.Popen | Forked, timeout: float = WAIT) -> list[Outcome]:
    """Waits for processes together; kills those that are still there at the end."""
    try:
        outcomes = []
        for p in processes:
            out, err = p.communicate(timeout=timeout)
            outcomes.append(Outcome(p.returncode, out, err))
        return outcomes
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
                p.communicate()


def wait_for(what: Callable[[], object], process: subprocess.Popen | Forked, pause: float = 0.005) -> None:
    """Returns when `what` gives something true; fails when the process ends before that, or after WAIT seconds."""
    end = time.monotonic() + WAIT
    while not what():
        if process.poll() is not None or time.monotonic() > end:
            out, err = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before it happened:\n{out}\n{err}")
        time.sleep(pause)


def metrics(run_dir: Path) -> Records:
    """metrics.jsonl, read as the report reads it; it must be whole."""
    records = read_metrics(run_dir)
    assert records.train, records.notes
    return records


def last_step(run_dir: Path) -> int:
    """The newest step in metrics.jsonl of a run that is going on, 0 before the first."""
    return max((r["step"] for r in read_metrics(run_dir).train), default=0)


def losses(run_dir: Path) -> list[float]:
    """The losses of all steps from 1 on."""
    records = metrics(run_dir).train
    assert [r["step"] for r in records] == list(range(1, len(records) + 1))
    return [r["loss"] for r in records]


# What must be equal bit for bit when a run is repeated or resumed; the rest are times.
REPRODUCED = ("step", "loss", "lr", "grad_norm", "param_norm", "update_norm", "batch", "tokens_seen", "real_tokens")


def reproduced(run_dir: Path) -> list[dict]:
    """Of every training record what does not depend on time, losses by language included."""
    return [{k: v for k, v in r.items() if k in REPRODUCED or k.startswith("loss/")} for r in metrics(run_dir).train]


def saved(run_dir: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    return list(step_folders(run_dir))


def state_of(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint (parameters, moments, counters) by its path."""
    leaves = read_meta(run_dir, step)["leaves"]
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    out = {}
    for item, described in leaves.items():
        wanted = {}
        for path, (shape, dtype) in described.items():
            node, names = wanted, path.split("/")
            for name in names[:-1]:
                node = node.setdefault(name, {})
            node[names[-1]] = jax.ShapeDtypeStruct(shape, dtype, sharding=first)
        with ocp.StandardCheckpointer() as reader:
            found = reader.restore(step_folders(run_dir)[step] / item, wanted)
        out |= {f"{item}/{path}": np.asarray(x) for path, x in flatten(found).items()}
    return out


def assert_same_state(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Every array equal bit for bit."""
    assert a.keys() == b.keys() and a
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


def cut_back(run_dir: Path, copy: Path, step: int) -> Path:
    """A copy of a run as if it had been killed right after the checkpoint of `step` was whole."""
    shutil.copytree(run_dir, copy)
    for beyond in (s for s in saved(copy) if s > step):
        shutil.rmtree(step_folders(copy)[beyond])
    path = copy / "metrics.jsonl"
    kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
    path.write_text("".join(kept))
    for made in ("report.html", "plots"):
        if (copy / made).is_dir():
            shutil.rmtree(copy / made)
        else:
            (copy / made).unlink(missing_ok=True)
    return copy


def damage(run_dir: Path, step: int) -> None:
    """Flips one bit in the largest array file of a checkpoint."""
    path = max((step_folders(run_dir)[step] / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def files(folder: Path) -> dict[str, bytes]:
    """Contents of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
