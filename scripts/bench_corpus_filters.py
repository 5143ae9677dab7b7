"""MB of text a second through each filter of the corpus, and the keyword filter beside counting as MMedC's code does.

    python -m scripts.bench_corpus_filters                     pages made of the hand-written records, all languages
    python -m scripts.bench_corpus_filters --input=web.jsonl   documents with `text` and `language`

CPU time of one process, in one run, so that the figures may be compared with one another. "published" counts each
keyword with str.count and list.count, one after the other, as the paper's code (its early accept left away, which
changes no verdict); "paper" is this project's mode that counts the same.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

from data_gen.corpus.exact_duplicates import text_key
from data_gen.corpus.keyword_lists import own_list, read_keywords
from data_gen.corpus.keywords import ANYWHERE, KeywordRule, KeywordSettings
from data_gen.corpus.language import LanguageSettings, judge_language
from data_gen.corpus.near_duplicates import NearSettings, Signatures
from data_gen.corpus.personal_data import PersonalDataSettings, mask_personal_data
from data_gen.corpus.quality import judge_quality
from data_gen.corpus.quality_thresholds import THRESHOLDS
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.input_files import open_unpacked
from mmed_jax.common.jsonl import read_objects
from mmed_jax.data.languages.declarations import DECLARATIONS

RECORDS = Path(__file__).parents[1] / "data_gen" / "handcrafted" / "instructions.jsonl"
_PAGE = 4000
Pages = list[str]


def made_pages(megabytes: float, seed: int = 1) -> dict[str, Pages]:
    """Pages of about 4,000 letters by language: sentences of the hand-written records in random order."""
    texts: dict[str, list[str]] = {}
    with open_unpacked(RECORDS) as stream:
        for _, row in read_objects(stream, RECORDS.name):
            texts.setdefault(row["language"], []).extend(m["content"] for m in row["messages"])
    rng = random.Random(seed)
    pages: dict[str, Pages] = {}
    for language, pieces in texts.items():
        pages[language], size = [], 0
        while size < megabytes * 1e6 / len(texts):
            page = ""
            while len(page) < _PAGE:
                page += rng.choice(pieces) + "\n"
            pages[language].append(page)
            size += len(page.encode())
    return pages


def read_pages(path: Path) -> dict[str, Pages]:
    """Documents of a JSON-lines file, by language."""
    codes = {language.code for language in DECLARATIONS}
    pages: dict[str, Pages] = {}
    with open_unpacked(path) as stream:
        for place, row in read_objects(stream, path.name):
            if row.get("language") not in codes or not isinstance(row.get("text"), str):
                raise UserError("no text, or no language of the project", place=place)
            pages.setdefault(row["language"], []).append(row["text"])
    return pages


def published_score(language: str) -> Callable[[str], tuple[int, float]]:
    """Counting keyword by keyword."""
    words = [keyword.word.lower() for keyword in read_keywords(own_list(language), language)]
    spaces = language not in ANYWHERE
    long = [w for w in words if not spaces or len(w) > 10 or len(w) > 5 and len(w.split()) > 1]
    short = [w for w in words if w not in long]

    def score(text: str) -> tuple[int, float]:
        lowered = text.lower() if spaces else text
        pieces = lowered.split() if spaces else []
        counts = [lowered.count(w) * len(w) for w in long if w in lowered]
        counts += [pieces.count(w) * len(w) for w in short if w in pieces]
        return len(counts), sum(counts) / len(text)

    return score


def filters(language: str) -> dict[str, Callable[[str], object]]:
    """What is measured, each a function of a text."""
    exact, paper = KeywordRule(KeywordSettings()), KeywordRule(KeywordSettings("paper"))
    return {
        "language": lambda text: judge_language(text, None, LanguageSettings()),
        "keywords": lambda text: exact.score(text, language),
        "keywords, paper": lambda text: paper.score(text, language),
        "keywords, published": published_score(language),
        "quality": lambda text: judge_quality(text, language, THRESHOLDS[language]),
        "exact key": lambda text: text_key(text, language),
        "signature": lambda text: Signatures.of([("", text, language)], NearSettings()),
        "personal data": lambda text: mask_personal_data(text, language, PersonalDataSettings()),
    }


def measure(pages: dict[str, Pages]) -> dict[str, dict[str, float]]:
    """{language: {filter: seconds of CPU}}."""
    seconds: dict[str, dict[str, float]] = {}
    for language, texts in pages.items():
        seconds[language] = {}
        for name, run in filters(language).items():
            run(texts[0])  # tables and models are made
            start = time.process_time()
            for text in texts:
                run(text)
            seconds[language][name] = time.process_time() - start
    return seconds


def table(pages: dict[str, Pages], seconds: dict[str, dict[str, float]]) -> str:
    """Rows of MB a second, by filter; the last column is over all languages."""
    size = {language: sum(len(text.encode()) for text in texts) / 1e6 for language, texts in pages.items()}
    rows = [["MB/s", *pages, "all"]]
    for name in next(iter(seconds.values())):
        rates = [size[code] / seconds[code][name] for code in pages]
        rows.append(
            [name, *map("{:.1f}".format, rates), f"{sum(size.values()) / sum(s[name] for s in seconds.values()):.1f}"]
        )
    times = [sum(s[name] for s in seconds.values()) for name in ("keywords, published", "keywords")]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join([*lines, f"keyword filter: {times[0] / times[1]:.1f} times as fast as counting as published"])


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--input", metavar="FILE", help="JSON lines with text and language")
    parser.add_argument("--megabytes", type=float, default=7.0, help="made pages, over all languages (default 7)")
    args = parser.parse_args(argv)
    pages = read_pages(Path(args.input)) if args.input else made_pages(args.megabytes)
    if not pages:
        raise UserError("no documents", place=args.input)
    print(table(pages, measure(pages)))


if __name__ == "__main__":
    run_command(main)
