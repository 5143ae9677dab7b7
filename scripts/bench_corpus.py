"""What the engine of `corpus build` costs beside bare datatrove: the same steps over the same files.

    python -m scripts.bench_corpus --mb=8

Steps: language, keywords, quality (this project's, as datatrove's steps), zstd-packed JSON lines. Bare: datatrove's
LocalPipelineExecutor with JsonlReader and JsonlWriter. Ours: the whole command with these steps, so checksums, units,
markers, books, keys for duplicates, report and a second copy of the documents are in it. Processor seconds of all
processes, which other programs disturb less than a clock; both take turns --rounds times, and the smaller one counts.
Linux only (workers are children of a process that forks them). Needs a checkout.
"""

import contextlib
import ctypes
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import run_command  # noqa: E402
from tests.support.corpora import demo_texts  # noqa: E402

FILES = 4
PR_SET_CHILD_SUBREAPER = 36
RECIPE = """
from data_gen.corpus.corpus_recipe import base, source


def get_config(variant=""):
    c = base()
    c.name, c.steps = "bench", ("language", "keywords", "quality")
    c.source.web = source("web")
    c.sources = ("web",)
    return c
"""
BARE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from data_gen.corpus.keywords import KeywordFilter
from data_gen.corpus.language import LanguageFilter
from data_gen.corpus.quality import QualityFilter

if __name__ == "__main__":
    source, output, tasks = sys.argv[1:]
    steps = [JsonlReader(source), LanguageFilter(), KeywordFilter(), QualityFilter()]
    steps.append(JsonlWriter(output, output_filename="${rank}.jsonl.zst", compression="zstd"))
    LocalPipelineExecutor(steps, tasks=int(tasks), workers=2, logging_dir=output + "/logs").run()
"""


def write_text(folder: Path, mb: float) -> None:
    """Sentences of the demo in random order, with numbers, in FILES files."""
    draw = random.Random(0)
    sentences: dict[tuple[str, str], list[str]] = {}
    for doc in demo_texts():
        if "language" in doc and "wrong" not in doc["id"]:
            end = "。" if "。" in doc["text"] else ". "
            sentences.setdefault((doc["language"], end), []).extend(doc["text"].split(end))
    folder.mkdir(parents=True)
    for number in range(FILES):
        with open(folder / f"{number}.jsonl", "wb") as f:
            while f.tell() < mb * 1e6 / FILES:
                (language, end), choice = draw.choice(sorted(sentences.items()))
                text = end.join(f"{draw.choice(choice)} {draw.randrange(10**6)}" for _ in range(draw.randrange(8, 40)))
                line = {"id": str(f.tell()), "text": text, "language": language, "license": "CC0"}
                f.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def processor_seconds(*command: object) -> float:
    """Of a command and all its children. Raises CalledProcessError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        list(map(str, command)),
        check=True,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.suppress(ChildProcessError):
        while True:  # the process that workers were forked from, and counted by, becomes ours with its parent's end
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """The command."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mb", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    best = {"bare datatrove": float("inf"), "corpus build": float("inf")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "web", args.mb)
        (folder / "recipe.py").write_text(RECIPE)
        (folder / "bare.py").write_text(BARE)
        ours = [sys.executable, "-m", "data_gen", "corpus", "build", f"--recipe={folder}/recipe.py", "--workers=2"]
        ours += [f"--data_dir={folder}", f"--output={folder}/ours", f"--recipe.unit_mb={args.mb / FILES}"]
        bare = [sys.executable, folder / "bare.py", folder / "web", folder / "bare", FILES]
        for _ in range(args.rounds):
            for kind, command in (("bare datatrove", bare), ("corpus build", ours)):
                best[kind] = min(best[kind], processor_seconds(*command))
            for output in ("ours", "bare"):
                shutil.rmtree(folder / output)
    for kind, seconds in best.items():
        print(f"{kind:<15} {seconds:6.1f} processor seconds, {args.mb / seconds:.2f} MB a second of one core")


if __name__ == "__main__":
    run_command(main)
