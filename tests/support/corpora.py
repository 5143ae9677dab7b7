"""Inputs of corpora for tests, and what a build left."""

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zstandard

from data_gen.corpus.corpus_build import PACKAGE

REPO = PACKAGE.parent
RECIPE = """
from data_gen.corpus.corpus_recipe import base, source


def get_config(variant=""):
    c = base()
    c.name, c.unit_mb = "small", 0.03
    c.source.web = source("web", license="CC0")
    c.source.books = source("books", kind="textbooks", keywords=False, license="CC0")
    c.sources = ("web", "books")
    return c
"""


def demo_texts() -> list[dict]:
    """The documents of the demo that can be read."""
    documents = []
    for line in (PACKAGE / "corpus" / "demo" / "web.ndjson").read_bytes().splitlines():
        try:
            documents.append(json.loads(line))
        except ValueError:
            continue
    return documents


def write_inputs(folder: Path, count: int = 120, seed: int = 0) -> int:
    """Web text in four forms with a bad line each where they have lines, and books; how many documents and bad lines.

    Documents are mixed of the demo's paragraphs, so that there are duplicates of both kinds.
    """
    draw, texts = random.Random(seed), demo_texts()
    documents = []
    for number in range(count):
        one, other = draw.choice(texts), draw.choice(texts)
        if one.get("language") != other.get("language"):
            other = one
        parts = one["text"].split("\n\n") + other["text"].split("\n\n")
        draw.shuffle(parts)
        text = "\n\n".join(parts[: draw.randrange(1, 4)])
        documents.append({"id": f"d{number}", "text": text, "language": one.get("language")})
    (folder / "web" / "deep").mkdir(parents=True)
    (folder / "books").mkdir()
    quarter = count // 4
    lines = [json.dumps(d, ensure_ascii=False).encode() + b"\n" for d in documents]
    plain = b"".join(lines[:quarter]) + b'{"text": "caf\xe9"}\n'
    (folder / "web" / "a.jsonl").write_bytes(plain)
    (folder / "web" / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[quarter : 2 * quarter]) + b'{"text": "cu'))
    packed = zstandard.ZstdCompressor().compress(b"[1]\n" + b"".join(lines[2 * quarter : 3 * quarter]))
    (folder / "web" / "deep" / "c.jsonl.zst").write_bytes(packed)
    table = pyarrow.Table.from_pylist(documents[3 * quarter :])
    pyarrow.parquet.write_table(table, folder / "web" / "deep" / "d.parquet", row_group_size=7)
    for number in range(3):
        (folder / "books" / f"{number}.txt").write_text(texts[number]["text"] * 2, encoding="utf-8")
    (folder / "recipe.py").write_text(RECIPE)
    return count + 3 + 3


def command(folder: Path, output: Path, *flags: str) -> list[str]:
    """The command of a build of `write_inputs`."""
    build = [sys.executable, "-m", "data_gen", "corpus", "build", f"--recipe={folder / 'recipe.py'}"]
    return [*build, f"--data_dir={folder}", f"--output={output}", "--workers=2", *flags]


def start(*arguments, **options) -> subprocess.Popen:
    """The command in a process group of its own."""
    return launch(command(*arguments), **options)


def launch(line: list[str], **options) -> subprocess.Popen:
    """Any command line in a process group of its own; `env`: what is set beside the environment."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), **options.pop("env", {})}
    return subprocess.Popen(
        line, cwd=REPO, env=environment, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


def finish(*arguments, **options) -> str:
    """Runs the command to its end; what it printed."""
    process = start(*arguments, **options)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def result(output: Path) -> dict[str, str]:
    """{name: checksum} of all that a build gives, without the folders of its stages."""
    paths = [p for p in sorted(output.rglob("*")) if p.is_file() and "work" not in p.relative_to(output).parts]
    return {p.relative_to(output).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def documents(output: Path) -> list[dict]:
    """All documents of a corpus, file by file."""
    unpack = zstandard.ZstdDecompressor()
    listed = json.loads((output / "corpus.json").read_bytes())["files"]
    lines = []
    for file in listed:
        data = (output / file["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"] and len(data) == file["bytes"]
        found = [json.loads(line) for line in unpack.stream_reader(data).read().splitlines()]
        assert len(found) == file["rows"] and {d["language"] for d in found} == {file["language"]}
        lines += found
    return lines


def stop_after(process: subprocess.Popen, seconds: float, number: int) -> bool:
    """Sends a signal after a while, to the process alone; False where it had ended before."""
    time.sleep(seconds)
    if process.poll() is not None:
        return False
    process.send_signal(number)
    process.wait(timeout=60)
    return True
