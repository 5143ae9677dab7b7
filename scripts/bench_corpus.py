"""What a whole build of a corpus costs beside bare datatrove with the same steps, stage by stage.

    python -m scripts.bench_corpus --mb=24                   both, with peak memory
    python -m scripts.bench_corpus --mb=200 --only=ours      memory of a larger input

Steps of both: language, keywords, quality (this project's, as datatrove's steps), near duplicates by MinHash with 14 x
8 hashes over the same words, zstd-packed JSON lines. Bare: JsonlReader, the filters, JsonlWriter, then the four MinHash
stages with SHA-1 of 64 bits, which is the setting of datatrove 0.10 that works with xxhash 4. Ours besides: checksums,
units, markers, books, exact duplicates, removal by id, report, and a second copy of the documents.

Every task is a process forked from this one, which has imported everything, one after the other: what is measured is
processor seconds and the peak memory of each (wait4), not the start of Python. MB are those of the input text. Linux
only. Needs a checkout.
"""

import json
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from datatrove.executor import LocalPipelineExecutor  # noqa: E402
from datatrove.pipeline.dedup import MinhashDedupSignature  # noqa: E402
from datatrove.pipeline.dedup.minhash import (  # noqa: E402
    HashConfig,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)
from datatrove.pipeline.readers import JsonlReader  # noqa: E402
from datatrove.pipeline.writers.jsonl import JsonlWriter  # noqa: E402
from datatrove.utils.logging import logger  # noqa: E402
from datatrove.utils.text import TextNormConfig  # noqa: E402

from data_gen.corpus import preloaded  # noqa: E402, F401
from data_gen.corpus.corpus_build import CorpusBuild  # noqa: E402
from data_gen.corpus.corpus_recipe import load_recipe  # noqa: E402
from data_gen.corpus.executor import split_tasks  # noqa: E402
from data_gen.corpus.keywords import KeywordFilter  # noqa: E402
from data_gen.corpus.language import LanguageFilter  # noqa: E402
from data_gen.corpus.quality import QualityFilter  # noqa: E402
from data_gen.corpus.run_task import run_reporting  # noqa: E402
from data_gen.corpus.stage_folder import StageFolder  # noqa: E402
from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import WorkError, run_command  # noqa: E402
from tests.support.corpora import demo_texts  # noqa: E402
from tests.support.datatrove_words import Words  # noqa: E402

COPIES = 0.1  # exact ones, and as many with a sentence changed
RECIPE = """
from data_gen.corpus.corpus_recipe import base, source


def get_config(variant=""):
    c = base()
    c.name, c.steps = "bench", ("language", "keywords", "quality", "exact_duplicates", "near_duplicates")
    c.source.web = source("web")
    c.sources = ("web",)
    return c
"""


@dataclass
class Cost:
    """Of a stage. mb: peak memory of its largest process."""

    seconds: float = 0.0
    mb: float = 0.0


def write_text(folder: Path, mb: float, file_mb: float) -> None:
    """Sentences of the demo in random order, with numbers; some documents again, exactly or almost."""
    draw = random.Random(0)
    sentences: dict[tuple[str, str], list[str]] = {}
    for doc in demo_texts():
        if "language" in doc and "wrong" not in doc["id"]:
            end = "。" if "。" in doc["text"] else ". "
            sentences.setdefault((doc["language"], end), []).extend(doc["text"].split(end))
    folder.mkdir(parents=True)
    earlier: list[tuple[str, str, list[str]]] = []
    written, number = 0, 0
    while written < mb * 1e6:
        with open(folder / f"{number:04d}.jsonl", "wb") as f:
            while f.tell() < min(file_mb * 1e6, mb * 1e6 - written):
                kind = draw.random()
                if kind < 2 * COPIES and earlier:
                    language, end, parts = draw.choice(earlier)
                    parts = list(parts)
                    if kind < COPIES:
                        parts[draw.randrange(len(parts))] = f"{draw.randrange(10**6)}"
                else:
                    (language, end), choice = draw.choice(sorted(sentences.items()))
                    chosen = draw.sample(choice, min(len(choice), draw.randrange(8, 25)))
                    parts = [f"{sentence} {draw.randrange(10**6)}" for sentence in chosen]
                    earlier = [*earlier[-500:], (language, end, parts)]
                line = {"id": f"{number}-{f.tell()}", "text": end.join(parts), "language": language, "license": "CC0"}
                f.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            written += f.tell()
        number += 1


def measured(cost: Cost, function: Callable[[], int | None], log: Path) -> None:
    """Runs a function in a process of its own and adds what it took. Raises WorkError where it failed."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(log, "a")
        code = 1
        try:
            code = function() or 0
        except BaseException:  # said in the log; nothing of the parent's may run here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise WorkError(f"a task failed: {log.read_text(errors='replace')[-400:]}")
    cost.seconds += usage.ru_utime + usage.ru_stime
    cost.mb = max(cost.mb, usage.ru_maxrss / 1024)


class MeasuringExecutor:
    """Parts one after the other, each in a process of its own (data_gen.corpus.executor.Executor)."""

    def __init__(self, log: Path) -> None:
        self.costs: dict[str, Cost] = {}
        self._log = log

    def run(self, folder: StageFolder) -> None:
        cost = self.costs.setdefault(folder.path.name.partition("-")[0], Cost())
        for parts in split_tasks(folder.pending(), 0):
            measured(cost, lambda: run_reporting(folder.path, parts), self._log)  # noqa: B023  (called at once)


def run_ours(folder: Path, unit_mb: float) -> tuple[dict[str, Cost], int]:
    """({stage: cost}, documents kept); `flow` is the process that puts the stages together."""
    recipe = load_recipe(str(folder / "recipe.py"), {"unit_mb": str(unit_mb)})
    executor, kept = MeasuringExecutor(folder / "ours.log"), folder / "kept.json"
    costs = folder / "costs.json"

    def build() -> None:
        summary = CorpusBuild(recipe, str(folder), str(folder / "ours"), executor, say=lambda text: None)()
        kept.write_text(json.dumps(sum(f["rows"] for f in summary["files"])))
        costs.write_text(json.dumps({name: vars(cost) for name, cost in executor.costs.items()}))

    flow = Cost()
    measured(flow, build, folder / "ours.log")
    stages = {name: Cost(**cost) for name, cost in json.loads(costs.read_bytes()).items()}
    flow.seconds -= sum(cost.seconds for cost in stages.values())  # wait4 counts children of children
    return stages | {"flow": Cost(flow.seconds, flow.mb)}, json.loads(kept.read_bytes())


def bare_stages(folder: Path, tasks: int) -> Iterator[tuple[str, list[Any], int]]:
    """(name, pipeline, tasks) of datatrove's stages."""
    norm = TextNormConfig(norm_numbers=False, norm_unicode_diacritics=False)
    config = MinhashConfig(norm_config=norm, hash_config=HashConfig(precision=64, hash_fc="sha1"))
    bare = str(folder / "bare")
    reader = JsonlReader(f"{bare}/filtered")

    def writer(name: str) -> JsonlWriter:
        return JsonlWriter(f"{bare}/{name}", output_filename="${rank}.jsonl.zst", compression="zstd")

    filters = [LanguageFilter(), KeywordFilter(), QualityFilter()]
    yield "filter", [JsonlReader(str(folder / "web")), *filters, writer("filtered")], tasks
    yield "signatures", [reader, MinhashDedupSignature(f"{bare}/sigs", config, Words())], tasks
    yield "buckets", [MinhashDedupBuckets(f"{bare}/sigs", f"{bare}/buckets", config=config)], config.num_buckets
    yield "cluster", [MinhashDedupCluster(f"{bare}/buckets", f"{bare}/remove", config=config)], 1
    yield "documents", [reader, MinhashDedupFilter(f"{bare}/remove"), writer("documents")], tasks


def run_bare(folder: Path, tasks: int) -> tuple[dict[str, Cost], int]:
    """({stage: cost}, documents kept)."""
    costs: dict[str, Cost] = {}
    for name, pipeline, count in bare_stages(folder, tasks):
        executor = LocalPipelineExecutor(pipeline, tasks=count, workers=1, logging_dir=f"{folder}/bare/logs/{name}")
        measured(costs.setdefault(name, Cost()), lambda: _run(executor), folder / "bare.log")  # noqa: B023
    logger.remove()
    kept = sum(1 for _ in JsonlReader(f"{folder}/bare/documents").run(None, 0, 1))
    return costs, kept


def _run(executor: LocalPipelineExecutor) -> None:
    executor.run()


def show(title: str, costs: dict[str, Cost], kept: int, mb: float) -> None:
    """A table of stages."""
    print(f"\n{title}: {kept:,} documents kept\n\n| stage | processor seconds | MB a second | peak MB |")
    print("|---|---|---|---|")
    total = Cost(sum(c.seconds for c in costs.values()), max(c.mb for c in costs.values()))
    for name, cost in (costs | {"all": total}).items():
        rate = f"{mb / cost.seconds:.1f}" if cost.seconds > 0.05 else "-"
        print(f"| {name} | {cost.seconds:.1f} | {rate} | {cost.mb:.0f} |", flush=True)


def main() -> None:
    """The command."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mb", type=float, default=8, help="text that is made")
    parser.add_argument("--unit_mb", type=float, default=4, help="of a unit, and of an input file")
    parser.add_argument("--only", choices=("ours", "bare"), help="one of the two")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "web", args.mb, args.unit_mb)
        (folder / "recipe.py").write_text(RECIPE)
        tasks = len(list((folder / "web").iterdir()))
        if args.only != "bare":
            show("corpus build", *run_ours(folder, args.unit_mb), args.mb)
        if args.only != "ours":
            show("bare datatrove", *run_bare(folder, tasks), args.mb)


if __name__ == "__main__":
    run_command(main)
