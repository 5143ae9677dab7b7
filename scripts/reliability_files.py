"""Broken files: every command that reads one ends by itself, with exit 0, 1 or 2 and one line at most.

    python -m scripts.reliability_files --cases=300

Takes what a small run leaves behind (a model folder, a checkpoint, a packed table), record files and published files,
damages one file of it by one of the mutations below, drawn from --seed, and runs the command that reads it in a process
of its own. A case is wrong when the exit code is another one, a traceback is printed, there is no error line or more
than one where it failed, a control character reaches the terminal, or it takes longer than --limit seconds. Needs a
checkout (the helpers are in tests/).
"""

import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from data_gen import __main__ as data_gen  # noqa: E402
from mmed_jax import export, inspect  # noqa: E402
from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import WorkError, run_command  # noqa: E402
from tests.support.sources import medmcqa, medqa_row, put, table  # noqa: E402
from tests.support.training import Bench, finish, instructions, write_jsonl  # noqa: E402

# ---- Mutations: (bytes, draw) -> bytes ------------------------------------------------------------------------------


def flip(data: bytes, draw: random.Random) -> bytes:
    """One bit."""
    at = draw.randrange(len(data) or 1)
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :] if data else b"\0"


def cut(data: bytes, draw: random.Random) -> bytes:
    """The rest is missing."""
    return data[: draw.randrange(len(data) or 1)]


def zeros(data: bytes, draw: random.Random) -> bytes:
    """A stretch of zeros, as a lost page of a disk."""
    at = draw.randrange(len(data) or 1)
    return data[:at] + bytes(min(4096, len(data) - at)) + data[at + 4096 :]


def twice(data: bytes, draw: random.Random) -> bytes:
    """A stretch that stands twice."""
    a, b = sorted(draw.randrange(len(data) or 1) for _ in range(2))
    return data[:b] + data[a:b] + data[b:]


def noise(data: bytes, draw: random.Random) -> bytes:
    """Random bytes."""
    return draw.randbytes(min(len(data), 1 << 16) or 16)


def value(data: bytes, draw: random.Random) -> bytes:
    """One number, text or word of JSON becomes something else."""
    others = (
        b"9" * 5000,
        b"[" * 3000,
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b"-1",
        b"1e999",
        b"NaN",
        b"true",
        b"1000000000",
        b'"\\u001b[2J"',
        b'"\\ud800"',
    )
    places = list(re.finditer(rb'-?\d+(?:\.\d+)?|true|false|null|"[^"\\]{0,80}"', data[: 1 << 20]))
    if not places:
        return flip(data, draw)
    m = draw.choice(places)
    return data[: m.start()] + draw.choice(others) + data[m.end() :]


BYTES = {f.__name__: f for f in (flip, cut, zeros, twice, noise, value)}
OTHERS = ("absent", "empty", "folder", "dangling link", "pipe")


def damage(file: Path, how: str, draw: random.Random) -> None:
    """Damages one file."""
    data = file.read_bytes()
    file.unlink()
    if how in BYTES:
        file.write_bytes(BYTES[how](data, draw))
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "folder":
        file.mkdir()
    elif how == "dangling link":
        file.symlink_to(file.with_name("nowhere"))
    elif how == "pipe":
        os.mkfifo(file)


# ---- What is damaged, and the command that reads it ----------------------------------------------------------------


def targets(base: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """{name: (folder of good files, what runs a command on a copy of it)}."""
    bench = Bench(base)
    run = base / "checkpoint"
    outcome = finish(bench.start(run / "run", steps=4, checkpoint__every_steps=4), timeout=600)[0]
    if outcome.code:
        raise WorkError(f"the small run ended with exit {outcome.code}: {outcome.err[-300:]}")
    ended, said = in_process(lambda: export.main([f"--model={run / 'run'}", f"--output={base / 'model' / 'hf'}"]), 300)
    if ended:
        raise WorkError(f"its export ended with exit {ended}: {said[-300:]}")
    records = base / "records"
    write_jsonl(records / "train.jsonl", instructions())
    shutil.copytree(bench.folder / "packed", base / "cache" / "packed")
    published = base / "published"
    published.mkdir()
    put(published / "medmcqa.jsonl", [medmcqa(n) for n in range(1, 5)])
    put(published / "medqa.jsonl", [medqa_row(n) for n in range(1, 9)])
    table(
        published / "mmlu.csv",
        ["question", "A", "B", "C", "D", "answer"],
        *([f"Which drug is number {n}?", "aspirin", "heparin", "digoxin", "insulin", "B"] for n in range(8)),
    )

    def look(train: Path, cache: Path) -> None:
        inspect.main([a for a in bench.argv(base / "none", **{"data__train": train, "data__cache_dir": cache})])

    def convert(copy: Path) -> None:
        for file in sorted(p for p in copy.iterdir() if p.name in ("medmcqa.jsonl", "medqa.jsonl", "mmlu.csv")):
            source = {"medmcqa": "medmcqa", "medqa": "medqa_us", "mmlu": "mmlu_medical"}[file.stem]
            if file.is_symlink() or not file.is_file() or file.read_bytes() != (published / file.name).read_bytes():
                data_gen.main(["convert", f"--source={source}", f"--input={file}", f"--output={copy / 'out.jsonl'}"])

    def exported(name: str) -> Callable[[Path], None]:
        return lambda copy: export.main([f"--model={copy / name}", f"--output={copy / 'out'}"])

    return {
        "model folders": (base / "model", exported("hf")),
        "checkpoints and run folders": (run, exported("run")),
        "record files": (records, lambda copy: look(copy / "train.jsonl", copy / "cache")),
        "packed tables": (base / "cache", lambda copy: look(bench.records, copy / "packed")),
        "published files": (published, convert),
    }


def in_process(work: Callable[[], object], limit: float) -> tuple[int | None, str]:
    """(exit code, what it printed to stderr) of work in a child process; None where it was ended at the limit."""
    with tempfile.TemporaryFile() as out:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads beside a fork; the child starts its own
            child = os.fork()
        if not child:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for where, to in ((null, 0), (null, 1), (out.fileno(), 2)):
                os.dup2(where, to)
            sys.stdout, sys.stderr = open(1, "w", encoding="utf-8"), open(2, "w", encoding="utf-8", buffering=1)
            code = 70
            try:
                run_command(work)
                code = 0
            except SystemExit as e:
                code = e.code if isinstance(e.code, int) else 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        end, status = time.monotonic() + limit, None
        while status is None and time.monotonic() < end:
            ended, found = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(found) if ended else None
            time.sleep(0.01)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        out.seek(0)
        return status, out.read().decode("utf-8", "replace")


def verdict(code: int | None, said: str) -> str:
    """ "" where the command ended as it should, else what is wrong."""
    errors = sum(line.startswith("error: ") for line in said.splitlines())
    if code is None:
        return "no end"
    if "Traceback" in said:
        return "traceback"
    if code not in (0, 1, 2):
        return f"exit {code}"
    if errors != (code != 0):
        return f"{errors} error lines"
    return "control characters" if re.search("[\x00-\x08\x0b-\x1f\x7f]", said.replace("\r", "")) else ""


def main(argv: list[str] | None = None) -> None:
    """Runs the suite and prints its table; exit 1 when a case is wrong."""
    parser = Parser(prog="python -m scripts.reliability_files", description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60, help="seconds that a command may take")
    args = parser.parse_args(argv)
    draw, counts, wrong = random.Random(args.seed), {}, []
    with tempfile.TemporaryDirectory(prefix="reliability_files_") as made:
        known = targets(Path(made))
        for case in range(args.cases):
            name = list(known)[case % len(known)]
            good, command = known[name]
            copy = Path(made) / "copy"
            shutil.copytree(good, copy)
            file = draw.choice(sorted(p for p in copy.rglob("*") if p.is_file() and p.name != ".lock"))
            how = draw.choice((*BYTES, *OTHERS))
            damage(file, how, draw)
            code, said = in_process(lambda command=command, copy=copy: command(copy), args.limit)
            fault = verdict(code, said)
            counts.setdefault(name, Counter())[fault or f"exit {code}"] += 1
            if fault:
                wrong.append(f"{name}, {file.relative_to(copy)}, {how}: {fault}")
                print(f"{wrong[-1]}\n{said[-600:]}", file=sys.stderr, flush=True)
            shutil.rmtree(copy)
    print("| files | cases | read (exit 0) | one line (exit 1, 2) | traceback | no end | other |")
    print("|---|---|---|---|---|---|---|")
    for name, found in counts.items():
        ended = [found["exit 0"], found["exit 1"] + found["exit 2"], found["traceback"], found["no end"]]
        print(f"| {name} | {found.total()} | {' | '.join(map(str, ended))} | {found.total() - sum(ended)} |")
    if wrong:
        raise WorkError(f"{len(wrong)} of {args.cases} cases, first: {wrong[0]}")


if __name__ == "__main__":
    run_command(main)
