"""A list of keywords by contrast: what stands in medical texts and hardly in general ones.

    python -m scripts.derive_keywords --language=ko --medical=medical.jsonl --general=general.jsonl --output=ko.txt

Both inputs are JSON lines with `text`, or records of this project (messages, or a question with options and rationale),
or .txt files with a document a line. Use texts whose licence lets their words be listed; a list of words is looked over
by somebody who reads the language before it filters anything.

Candidates are words (runs of letters, lower case) or, in Chinese, Japanese and Korean, runs of two to six characters of
the script. They are counted by documents, ordered by the log-odds ratio with a prior from both texts together, divided
by its standard error (Monroe, Colaresi and Quinn 2008), and taken from the top, without those that more than
--most_general of the general documents have and without pieces of a longer candidate that mostly stand in it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_gen.corpus.keyword_lists import normal
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest, run_command
from mmed_jax.common.input_files import open_unpacked
from mmed_jax.common.jsonl import read_objects
from mmed_jax.common.output_files import check_file, write_text
from mmed_jax.data.languages.declarations import DECLARATIONS
from mmed_jax.data.languages.scripts import SCRIPTS, SCRIPTS_OF

_WORD = re.compile(r"[^\W\d_]{4,}")
_DENSE = ("han", "kana", "hangul")
_LONGEST = 6
# A piece that stands in a longer candidate in this share of its documents says nothing beyond it.
_PIECE = 0.8


def texts(path: Path) -> Iterator[str]:
    """The documents of a file. Raises UserError for a file that is neither, or a line without text."""
    if not path.is_file():
        raise UserError("no such file", place=path)
    with open_unpacked(path) as stream:
        if ".jsonl" not in path.name:
            yield from (line.decode("utf-8", "replace") for line in stream)
            return
        for place, row in read_objects(stream, path.name):
            if text := _text(row):
                yield text
            else:
                raise UserError("neither text, messages nor a question", place=place)


def _text(row: dict) -> str:
    if isinstance(row.get("text"), str):
        return row["text"]
    parts = [m.get("content", "") for m in row.get("messages", ()) if isinstance(m, dict)]
    options = row.get("options")
    parts += [row.get(key, "") for key in ("context", "question", "rationale")]
    parts += options.values() if isinstance(options, dict) else []
    return "\n".join(part for part in parts if isinstance(part, str) and part)


def candidates(text: str, language: str) -> set[str]:
    """Words of a text, or pieces of it, that may be keywords."""
    text = normal(text)
    scripts = SCRIPTS_OF[language]
    if not set(scripts) & set(_DENSE):
        own = SCRIPTS[scripts[0]]
        return {word for word in _WORD.findall(text) if all(map(own.match, word))}
    own_letters = "".join(SCRIPTS[name].pattern[1:-1] for name in scripts)
    runs = re.findall(rf"[{own_letters}ー]{{2,}}", text)
    return {
        run[start : start + size]
        for run in runs
        for size in range(2, _LONGEST + 1)
        for start in range(len(run) - size + 1)
    }


def count_documents(documents: Iterable[str], language: str) -> tuple[Counter[str], int]:
    """({candidate: documents that have it}, documents)."""
    counts: Counter[str] = Counter()
    total = 0
    for document in documents:
        counts.update(candidates(document, language))
        total += 1
    return counts, total


def contrast(medical: Counter[str], general: Counter[str], totals: tuple[int, int]) -> dict[str, float]:
    """{candidate: standardised log-odds ratio}, positive where it is medical. totals: documents of each."""
    words = list(medical)
    counts = np.array([[medical[word], general[word]] for word in words], float).reshape(-1, 2)
    # The prior is what both together say, with the weight of a document in a hundred of the smaller one.
    prior = counts.sum(axis=1, keepdims=True) / sum(totals) * max(1.0, min(totals) / 100)
    rest = np.array(totals, float) - counts
    odds = np.log((counts + prior) / (rest + 1))
    variance = (1 / (counts + prior)).sum(axis=1)
    return dict(zip(words, ((odds[:, 0] - odds[:, 1]) / np.sqrt(variance)).tolist()))


def choose(scores: dict[str, float], medical: Counter[str], count: int) -> list[str]:
    """The best candidates, without pieces of others and without those that hold a better one and little else."""
    ranked = sorted((w for w, score in scores.items() if score > 2), key=lambda w: (-scores[w], w))
    # Of pieces that overlap, the longer one that stands in as many documents is the word.
    whole = [
        word
        for word in ranked[: 20 * count]
        if not any(
            word != other and word in other and medical[other] >= _PIECE * medical[word]
            for other in ranked[: 20 * count]
        )
    ]
    chosen: list[str] = []
    for word in whole:
        if len(chosen) == count:
            break
        if not any(word in other or other in word for other in chosen):
            chosen.append(word)
    return chosen


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    codes = [language.code for language in DECLARATIONS]
    parser.add_argument("--language", required=True, metavar="|".join(codes))
    parser.add_argument("--medical", required=True, metavar="FILE", help="medical documents")
    parser.add_argument("--general", required=True, metavar="FILE", help="general documents")
    parser.add_argument("--output", required=True, metavar="FILE", help="the list, best first")
    parser.add_argument("--count", type=int, default=200, help="keywords (default 200)")
    parser.add_argument("--least", type=int, default=5, help="medical documents that have it (default 5)")
    parser.add_argument("--most_general", type=float, default=0.01, help="share of general ones at most (default 0.01)")
    args = parser.parse_args(argv)
    if args.language not in codes:
        raise UserError(f"--language={args.language}: unknown{nearest(args.language, codes)}")
    output = check_file(args.output, "--output")
    medical, in_medical = count_documents(texts(Path(args.medical)), args.language)
    general, in_general = count_documents(texts(Path(args.general)), args.language)
    if not in_medical or not in_general:
        raise UserError("no documents", place=args.general if in_medical else args.medical)
    medical = Counter({word: n for word, n in medical.items() if n >= args.least})
    scores = contrast(medical, general, (in_medical, in_general))
    scores = {word: score for word, score in scores.items() if general[word] <= args.most_general * in_general}
    chosen = choose(scores, medical, args.count)
    head = f"# {len(chosen)} keywords by contrast: {in_medical:,} medical documents over {in_general:,} general ones.\n"
    write_text(output, head + "".join(f"{word}\n" for word in chosen))
    print(f"{output}: {len(chosen)} keywords of {len(scores):,} candidates")


if __name__ == "__main__":
    run_command(main)
