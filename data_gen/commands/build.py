"""Builds a whole set by a recipe: sources, methods, gates, benchmarks, duplicates, split, files, card, report.

    python -m data_gen build --recipe=mmed_ift --data_dir=raw --output=sets/mmed_ift --model=gpt-4o-mini --max_usd=20
    python -m data_gen build --recipe=mmed_ift_mc:open --data_dir=raw --benchmarks=test_sets --output=sets/mc ...
    python -m data_gen build --recipe=mmed_ift:demo --recipe.languages=en,ko --output=sets/demo --base_url=...
    python -m data_gen build --recipe=mmedbench --data_dir=raw --output=benchmarks/mmedbench --extra=id,license ...

Stop it at any time; the same command goes on and pays only for what the ledger lacks. The same recipe and the same
ledger give the same bytes. The output: jsonl/, tfds/, parquet/, README.md (the card), report.html, build.json,
recipe.json, rejects.jsonl, contaminated.jsonl. Of a benchmark (docs/mmedbench.md): Train/, Test/ and what goes with
them.
"""

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_gen.sets import mmedbench_card, mmedbench_format, writers
from data_gen.sets.contamination import Benchmarks
from data_gen.sets.cross_split import near_duplicates
from data_gen.sets.dataset_card import card
from data_gen.sets.inputs import Inputs, collect, read_benchmarks
from data_gen.sets.recipes import FILTERS, as_dict, load_recipe, recipe_hash
from data_gen.sets.run_steps import Generator, Rows
from data_gen.sets.select import KEPT, TEST, VALIDATION, Selection, Selector
from data_gen.sets.set_report import page
from data_gen.sets.statistics import Facts, gather, loss_rows
from mmed_jax.common import console, jsonl
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, WorkError, nearest, run_command
from mmed_jax.common.hashes import file_hash
from mmed_jax.common.place_flags import InputPlace, OutputPlace
from mmed_jax.common.progress import counting_bar
from mmed_jax.config.overrides import split_overrides
from mmed_jax.data.packed_cache import content_hash, listing_hash
from mmed_jax.llm_api.cost_estimate import sum_estimates
from mmed_jax.llm_api.ledger.answers_digest import answers_digest, request_keys
from mmed_jax.llm_api.ledger.balance import cost_behind
from mmed_jax.llm_api.unfinished import all_rejected_text, unfinished_text

SUMMARY = "a whole set by a recipe: MMed-IFT, MMed-IFT-MC, MMedBench or your own"
_FILES = (
    "jsonl",
    "tfds",
    "parquet",
    "README.md",
    "report.html",
    "build.json",
    "recipe.json",
    "rejects.jsonl",
    "contaminated.jsonl",
)
# Of a benchmark; its lines aside, nothing there ends in .jsonl (see data_gen/sets/mmedbench_format.py).
_BENCHMARK_FILES = (
    "Train",
    "Test",
    "records",
    "README.md",
    "report.html",
    "build.json",
    "recipe.json",
    "rejects.ndjson",
    "near_duplicates.ndjson",
)


class Build:
    """One build. `run(method, inputs, settings, gates)` is mmed_jax.llm_api.runner.run, `settings` its settings."""

    def __init__(
        self,
        recipe: Any,
        data_dir: str,
        output: str,
        *,
        run: Callable,
        settings: Any,
        licenses: str = "open",
        benchmarks: str = "",
        partial: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        if licenses not in FILTERS:
            raise UserError(f"--licenses={licenses}: unknown{nearest(licenses, FILTERS)}")
        self.recipe, self.data_dir, self.output, self.run, self.settings = recipe, data_dir, Path(output), run, settings
        self.licenses, self.folder, self.partial, self.say = licenses, benchmarks, partial, say
        self.is_benchmark = recipe.format == "mmedbench"
        if self.is_benchmark and benchmarks:
            raise UserError("--benchmarks: this recipe builds a benchmark; its test questions are meant to stay")
        # Of a benchmark: its repeated test questions, and questions that need an image by (split, language).
        self.near_duplicates: list[dict] = []
        self.images: Counter[tuple[str, str]] = Counter()
        self.benchmarks: dict[str, int] = {}
        self.inputs: Inputs
        self.rows: Rows
        self.selection: Selection
        self.splits: list[str] = [KEPT]
        self._published: writers.Read

    def __call__(self) -> Facts | None:
        """Builds and writes the set; None after a dry run. Raises WorkError while requests are pending."""
        with self._work_folder() as work:
            tests = self._read_benchmarks()
            self.inputs = self._choose_inputs(tests, work)
            self.rows = self._run_steps(work)
            if self.settings.dry_run:
                self._report_estimates()
                return None
            self._check_answers()
            read = self._select(tests)
            facts = self._write(work / "new", read)
            self._put_in_place(work / "new")
            return facts

    def _read_benchmarks(self) -> Benchmarks:
        """The test sets that no row may give away; none without --benchmarks."""
        tests = Benchmarks(self.recipe.contamination, self.recipe.contamination_question)
        if self.folder:
            self.benchmarks = read_benchmarks(self.folder, tests)
            self.say(f"benchmarks: {', '.join(f'{name} {n:,}' for name, n in self.benchmarks.items())}")
        return tests

    def _choose_inputs(self, tests: Benchmarks, work: Path) -> Inputs:
        """Rows of the recipe's sources that licence, language and gates let in. Raises UserError where none is."""
        with counting_bar("inputs", unit=" rows", unit_scale=True) as bar:
            inputs = collect(self.recipe, self.data_dir, self.licenses, tests, work, bar.update)
        self.say(f"inputs: {len(inputs.entry):,}, of families with a test item {int(inputs.blocked.sum()):,}")
        for name, why in inputs.missing.items():
            self.say(f"not read: {name}: {why}")
        if not inputs.entry:
            raise UserError(f"--data_dir={self.data_dir}: no source of the recipe gave a row")
        return inputs

    def _run_steps(self, work: Path) -> Rows:
        """What the recipe's methods make of the inputs."""
        return Generator(self.recipe, self.inputs, work, self.run, self.settings)()

    def _report_estimates(self) -> None:
        self.say(sum_estimates(self.rows.estimates))
        self.say("not in it: steps over rows that other steps are still to make; nothing was sent, nothing written")

    def _check_answers(self) -> None:
        """Raises WorkError while requests are pending, unless the set may be partial."""
        if self.rows.pending() and not self.partial:
            raise WorkError(
                f"{self.rows.pending():,} requests are pending; the same command goes on (--partial builds "
                "a set of what is there)"
            )

    def _select(self, tests: Benchmarks) -> writers.Read:
        """Leaves out duplicates and test items, and splits; gives the records of a split. Raises WorkError for none."""
        with counting_bar("selection", unit=" rows", unit_scale=True) as bar:
            selector = Selector(self.recipe, self.inputs, self.rows, tests, bar.update)
            self.selection = selector()
        if not self.selection.where:
            raise WorkError("no row is left for the set; see the reasons: " + self._reasons())
        self.splits = [s for s in (KEPT, VALIDATION, TEST) if s in self.selection.split]
        return self._look_at_benchmark(selector.records) if self.is_benchmark else selector.records

    def _look_at_benchmark(self, read: writers.Read) -> writers.Read:
        """Finds repeated questions and those of images; gives the records of a split with what people said of them."""
        checks = mmedbench_format.read_checks(self.output)
        self.near_duplicates = near_duplicates(read, self.recipe.near_duplicates)
        self.images = Counter((s, r["language"]) for s in self.splits for r in read(s) if r.get("needs_image"))
        return lambda split: mmedbench_format.apply_checks(read(split), split, checks)

    def _write(self, new: Path, read: writers.Read) -> Facts:
        """All files of the set, in a folder of their own."""
        new.mkdir()
        recipe = self.recipe
        if self.is_benchmark:
            counts = mmedbench_format.write_benchmark(new, read, recipe.languages, recipe.extra)
        else:
            counts = writers.write_jsonl(new, read, self.splits, tuple(recipe.languages))
            writers.write_tfds_set(new, recipe, read, self.splits)
            writers.write_parquet(new, recipe.kind, read, self.splits)
        facts = gather(recipe, read, self.splits)
        self._published = read
        if facts.total != sum(counts.values()):
            raise AssertionError(f"{facts.total} rows gathered, {sum(counts.values())} written")
        rejects = [*self.inputs.rejects, *self.rows.rejects, *self.selection.rejects]
        if self.is_benchmark:
            writers.write_rejects(new / "rejects.ndjson", rejects)
            jsonl.write_lines(new / "near_duplicates.ndjson", map(jsonl.dump_line, self.near_duplicates))
        else:
            writers.write_rejects(new / "rejects.jsonl", rejects)
            writers.write_rejects(new / "contaminated.jsonl", self._contaminated())
        (new / "README.md").write_text(card(self, facts), encoding="utf-8")
        (new / "report.html").write_text(page(self, facts), encoding="utf-8")
        (new / "recipe.json").write_text(json.dumps(as_dict(recipe), indent=1, ensure_ascii=False) + "\n", "utf-8")
        hashes = {p.relative_to(new).as_posix(): file_hash(p) for p in sorted(new.rglob("*")) if p.is_file()}
        (new / "build.json").write_text(
            json.dumps(self.summary(facts) | self._evidence(facts, hashes), indent=1, ensure_ascii=False) + "\n",
            "utf-8",
        )
        return facts

    def _put_in_place(self, new: Path) -> None:
        """Replaces the files of an earlier build."""
        for name in _BENCHMARK_FILES if self.is_benchmark else _FILES:
            if not (new / name).exists():
                continue
            target = self.output / name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(new / name, target)

    @contextlib.contextmanager
    def _work_folder(self) -> Iterator[Path]:
        """A folder for what is under way, inside the output; elsewhere for a dry run, which leaves nothing behind."""
        if self.output.is_file():
            raise UserError(f"--output={self.output}: is a file; name a folder")
        if self.settings.dry_run:
            with tempfile.TemporaryDirectory(prefix="data_gen-") as folder:
                yield Path(folder)
            return
        other = "jsonl" if self.is_benchmark else "Train"
        if (self.output / other).is_dir():  # its files would be read together with the new ones
            raise UserError(f"--output={self.output}: holds what another format wrote ({other}/); name another folder")
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            _clear(self.output)
            work = Path(tempfile.mkdtemp(prefix=f".build-{os.getpid()}-", dir=self.output))
        except OSError as e:
            raise UserError(f"--output={self.output}: cannot be written ({e.strerror or e})") from e
        try:
            yield work
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise WorkError(f"{e.filename or self.output}: cannot be written ({e.strerror})") from e
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _contaminated(self) -> list[dict]:
        """Every row and input that gives a test item away, and the rows that fell with their families."""
        keeps = {i for i, name in enumerate(self.recipe.sources) if self.recipe.source[name].keep}
        inputs = [
            {
                "id": self.inputs.buffer[i]["id"],
                "stage": f"source {self.recipe.sources[self.inputs.entry[i]]}",
                "reason": "contamination",
                "detail": f"{hit.benchmark}: {hit.item}",
                "how": hit.look,
                "score": hit.score,
            }
            for i, hit in sorted(self.inputs.hits.items())
            if self.inputs.entry[i] not in keeps
        ]
        return inputs + self.selection.contaminated

    # What card and report ask.

    def hits_by_benchmark(self) -> Counter:
        """Rows and inputs with a hit, by benchmark; those that fell with their family are not counted."""
        return Counter(row["detail"].partition(": ")[0] for row in self._contaminated() if row["how"] != "family")

    def short_of_target(self, facts: Facts) -> list[tuple[str, int]]:
        """(language, rows) of the languages with fewer rows than wanted."""
        have = {code: sum(n for (_, c), n in facts.rows.items() if c == code) for code in self.recipe.languages}
        return [(c, have[c]) for c in self.recipe.languages if have[c] < self.recipe.targets.get(c, 0)]

    def cost(self) -> dict[str, float]:
        """{"requests", "usd", "unpriced"} of the answers behind this build, cut ones included, by the ledger."""
        return cost_behind(self.settings.ledger_file, self.rows.keys)

    def cost_text(self) -> str:
        """One sentence on requests and money."""
        cost = self.cost()
        unpriced = f"; {cost['unpriced']:,} answers have no known price" if cost["unpriced"] else ""
        answered = f"{cost['requests']:,} answered requests stand behind this build"
        return f"{answered}, for {cost['usd']:.2f} US dollars{unpriced}."

    def _reasons(self) -> str:
        rows = loss_rows(self.recipe, self.inputs, self.rows, self.selection)
        return ", ".join(f"{reason} {n:,}" for _, _, reason, n in sorted(rows, key=lambda r: -r[3])[:6]) or "no input"

    def _evidence(self, facts: Facts, hashes: dict[str, str]) -> dict:
        """What an audit compares (mmed_jax.lineage): SHA-256 of files and sources, prompts, models, answers."""
        keys = {key for split in self.splits for row in self._published(split) for key in request_keys(row)}
        sources = {
            name: {"name": below, "sha256": listing_hash(content_hash(path))}
            for name, (path, below) in sorted(self.inputs.places.items())
        }
        return {
            "sources": sources,
            "rows_by_source": {f"{code}/{source}": n for (code, source), n in sorted(facts.sources.items())},
            "rows_by_license": dict(sorted(facts.licenses.items())),
            "prompts": dict(sorted(facts.prompts.items())),
            "models": dict(sorted((m, n) for m, n in facts.models.items() if m)),
            "answers": answers_digest(self.settings.ledger_file, keys),
            "sha256": hashes,
        }

    def summary(self, facts: Facts) -> dict:
        """build.json: the counts, so that nothing has to be read out of the card."""
        outcomes = {
            name: {f"{state}/{reason}" if reason else state: n for (state, reason), n in sorted(counts.items())}
            for name, counts in self.rows.outcomes.items()
        }
        return {
            "name": self.recipe.name,
            "version": self.recipe.version,
            "recipe": recipe_hash(self.recipe),
            "licenses": self.licenses,
            "rows": {f"{s}/{c}": n for (s, c), n in sorted(facts.rows.items())},
            "inputs": dict(self.inputs.read),
            "dropped": {k: dict(v) for k, v in self.inputs.dropped.items() if v},
            "missing": self.inputs.missing,
            "steps": outcomes,
            "skipped": {k: dict(v) for k, v in self.rows.skipped.items() if v},
            "candidates": self.selection.candidates,
            "removed": {k: dict(v) for k, v in self.selection.removed.items() if v},
            "benchmarks": self.benchmarks,
            "hits": dict(self.hits_by_benchmark()),
            "flags": dict(facts.flags),
            "cost": self.cost(),
            **(mmedbench_card.summary(self, facts) if self.is_benchmark else {}),
        }


def _clear(output: Path) -> None:
    """Removes what builds left that were killed; those of processes that live stay."""
    for folder in output.glob(".build-*-*"):
        try:
            os.kill(int(folder.name.split("-")[1]), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:  # alive, another user's
            pass


def _parser() -> Parser:
    from mmed_jax.llm_api.runner import add_run_flags

    parser = Parser(
        names_itself=True,
        prog="python -m data_gen build",
        description=__doc__.partition("\n")[0],
        epilog="--recipe.KEY=VALUE sets any key of the recipe; data_gen/sets/recipes.py explains each.",
    )
    parser.add_argument("--recipe", metavar="NAME[:VARIANT]", help="mmed_ift, mmed_ift_mc, mmedbench, or a .py file")
    parser.add_argument(
        "--data_dir", type=InputPlace, metavar="DIR", default=".", help="where the published sources lie"
    )
    parser.add_argument("--output", type=OutputPlace, metavar="DIR", help="folder of the set")
    parser.add_argument(
        "--benchmarks", type=InputPlace, metavar="DIR", default="", help="test sets that no row may give away"
    )
    parser.add_argument("--licenses", metavar="|".join(FILTERS), default="open", help="which licences to let in")
    parser.add_argument(
        "--extra",
        metavar="KEY,..",
        default="",
        help=f"of a benchmark: further keys of each line ({', '.join(mmedbench_format.EXTRA)})",
    )
    parser.add_argument("--partial", action="store_true", help="build although requests are pending")
    add_run_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags, recipe or input, WorkError when work is left."""
    flags, overrides = split_overrides(sys.argv[1:] if argv is None else argv, "--recipe")
    args = _parser().parse_args(flags)
    for name in ("recipe", "output"):
        if not getattr(args, name):
            raise UserError(f"build: --{name} is missing (--help shows the flags)")
    if not args.dry_run:
        console.outlive()
    with local_places(args) as places:
        build_set(places, overrides)


def build_set(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Builds the set of --recipe and prints its counts; errors as of `main`."""
    from mmed_jax.llm_api.runner import run, settings_from

    recipe = load_recipe(args.recipe, overrides | ({"extra": args.extra} if args.extra else {}))
    build = Build(
        recipe,
        args.data_dir,
        args.output,
        run=run,
        settings=settings_from(args),
        licenses=args.licenses,
        benchmarks=args.benchmarks,
        partial=args.partial,
        say=lambda text: print(text, flush=True),
    )
    facts = build()
    if facts is not None:
        _print_set(build, facts, args.output)
        _check_steps(build)


def _print_set(build: Build, facts: Facts, output: str) -> None:
    """Rows by language, rows left out by reason, the cost, and what to do next."""
    recipe = build.recipe
    losses: Counter[str] = Counter()
    for stage, _, reason, n in loss_rows(recipe, build.inputs, build.rows, build.selection):
        losses[f"{stage}: {reason}"] += n
    width = max(map(len, (*losses, "rows in the set")))
    print(f"{'rows in the set':<{width}}  {facts.total:>9,}")
    for code in recipe.languages:
        print(f"{'  ' + code:<{width}}  {sum(n for (_, c), n in facts.rows.items() if c == code):>9,}")
    for reason, n in losses.most_common():
        print(f"{reason:<{width}}  {n:>9,}")
    print(build.cost_text())
    if build.is_benchmark:
        print("\n".join(mmedbench_card.notes(build, facts, output)))
        return
    print(f"written: {output} (README.md, report.html, jsonl/, tfds/, parquet/)")
    stage = "stage1" if recipe.kind == "instruction" else "stage2"
    print(f"next: python -m mmed_jax.train --config={stage} --config.data.train={output}/tfds/{recipe.name}")


def _check_steps(build: Build) -> None:
    """Raises WorkError where a step's requests failed, or all its rows were rejected."""
    outcomes = build.rows.outcomes
    failed = sum(n for counts in outcomes.values() for (state, _), n in counts.items() if state == "failed")
    lost = [f"step {name}: {text}" for name, counts in outcomes.items() if (text := all_rejected_text(counts))]
    if failed or lost:
        raise WorkError(f"the set is written, but {'; '.join(filter(None, (unfinished_text(0, failed), *lost)))}")


if __name__ == "__main__":
    run_command(main)
