"""Reads the hand-written samples and checks them: schema, duplicates, languages, balance of letters, notice.

python -m data_gen handcraft
python -m data_gen handcraft --input=my_samples --output=handcrafted.jsonl --kind=mcq
"""

import collections
import unicodedata
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest, run_command
from mmed_jax.common.input_files import open_unpacked, suffix
from mmed_jax.common.place_flags import InputPlace, OutputPlace
from mmed_jax.data.records.reading import load_files
from mmed_jax.data.records.schema import KINDS, LANGUAGES, kind_of, wording_key

SUMMARY = "the hand-written samples, checked"
FOLDER = Path(__file__).parents[1] / "handcrafted"
# Keys of one letter in a language, relative to an even share; beyond, a model could score by the letter alone.
UNEVEN = (0.6, 1.4)
MIN_KEYS = 20  # fewer keys say nothing about balance


def problems(records: list[dict]) -> list[str]:
    """What is wrong with a set of hand-written records, one line each; empty when nothing is.

    Looked for: source and method other than "handcrafted", no notice, a group that lacks a language or holds one
    twice, two records of a language with one question, equal options, a key letter that is far too frequent or rare.
    """
    return [*_marks(records), *_families(records), *_duplicates(records), *_balance(records)]


def _marks(records: list[dict]) -> list[str]:
    faults = []
    for r in records:
        if (r["source"], r["method"]) != ("handcrafted", "handcrafted"):
            faults.append(f"{r['id']}: source and method are '{r['source']}', '{r['method']}', not 'handcrafted'")
        if not str(r["provenance"].get("notice", "")).strip():
            faults.append(f"{r['id']}: no provenance.notice (who wrote it, what it is not for)")
        if not r["provenance"].get("group"):
            faults.append(f"{r['id']}: no provenance.group")
    return faults


def _families(records: list[dict]) -> list[str]:
    groups = collections.defaultdict(collections.Counter)
    for r in records:
        groups[r["provenance"].get("group")][r["language"]] += 1
    faults = []
    for group, languages in groups.items():
        lacking = [code for code in LANGUAGES if not languages[code]]
        twice = [code for code in LANGUAGES if languages[code] > 1]
        if group and (lacking or twice):
            faults.append(
                f"group {group}: "
                + "; ".join(
                    f"{what} {', '.join(codes)}"
                    for what, codes in (("lacks", lacking), ("holds twice", twice))
                    if codes
                )
            )
    return faults


def _duplicates(records: list[dict]) -> list[str]:
    faults, seen = [], {}
    for r in records:
        first = seen.setdefault((r["language"], wording_key(r)), r["id"])
        if first != r["id"]:
            faults.append(f"{r['id']}: the same question as {first}")
        options = [unicodedata.normalize("NFKC", o).casefold().strip() for o in r.get("options", {}).values()]
        if len(set(options)) < len(options):
            faults.append(f"{r['id']}: two options are the same")
    return faults


def _balance(records: list[dict]) -> list[str]:
    """Per language, by the number of options offered: a question of four options can't have the key E."""
    counts, expected = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    for r in (r for r in records if kind_of(r) == "mcq"):
        keys = r["answer_idx"].split(",")
        counts[r["language"]].update(keys)
        for letter in r["options"]:
            expected[r["language"]][letter] += len(keys) / len(r["options"])
    faults = []
    for language, letters in counts.items():
        total = sum(letters.values())
        for letter, even in expected[language].items():
            if total >= MIN_KEYS and even >= 4 and not UNEVEN[0] <= letters[letter] / even <= UNEVEN[1]:
                faults.append(
                    f"{language}: {letters[letter]} of {total} keys are {letter}; an even share is {even:.0f}"
                )
    return faults


def table(records: list[dict]) -> str:
    """Counts by language and kind, with the letters of the keys."""
    lines = [f"{'language':<10}{'instruction':>12}{'mcq':>6}  keys"]
    for code in LANGUAGES:
        mine = [r for r in records if r["language"] == code]
        kinds = collections.Counter(map(kind_of, mine))
        keys = collections.Counter(x for r in mine if kind_of(r) == "mcq" for x in r["answer_idx"].split(","))
        letters = " ".join(f"{letter}:{n}" for letter, n in sorted(keys.items()))
        lines.append(f"{code:<10}{kinds['instruction']:>12}{kinds['mcq']:>6}  {letters}".rstrip())
    return "\n".join(lines)


def read(folder: Path) -> list[dict]:
    """All records of the .jsonl files of a folder (or of one file), in the order of the names. Raises UserError."""
    files = [folder]
    if folder.is_dir():
        files = sorted(f for f in folder.iterdir() if suffix(f) == ".jsonl")
    if not folder.exists() or not files:
        raise UserError(f"--input={folder}: no .jsonl file there")
    records, places = [], {}
    for file in files:
        for r in _of_any_kind(file):
            if r["id"] in places:
                raise UserError(f"{file}: id '{r['id']}' was already used in {places[r['id']]}")
            places[r["id"]] = file
            records.append(r)
    return records


def _of_any_kind(file: Path) -> list[dict]:
    with open_unpacked(file) as stream:
        first = next(jsonl.read_objects(stream, str(file)), ("", {}))[1]
    kind = "instruction" if "messages" in first else "mcq"
    return load_files([str(file)], kind)


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError with the first problems when the samples have any."""
    parser = Parser(prog="python -m data_gen handcraft", description=__doc__.partition("\n")[0], names_itself=True)
    parser.add_argument(
        "--input", type=InputPlace, metavar="PATH", default=str(FOLDER), help="folder of .jsonl files, or one file"
    )
    parser.add_argument(
        "--output", type=OutputPlace, metavar="FILE", help="write the checked records: a .jsonl or .jsonl.gz name"
    )
    parser.add_argument("--kind", metavar="KIND", help=f"only these: {' or '.join(KINDS)}")
    with local_places(parser.parse_args(argv)) as args:
        if args.kind is not None and args.kind not in KINDS:
            raise UserError(f"--kind={args.kind}: unknown{nearest(args.kind, KINDS)}")
        if args.output and not args.output.endswith(jsonl.SUFFIXES):
            raise UserError(f"--output={args.output}: must end in {' or '.join(jsonl.SUFFIXES)}")
        records = [r for r in read(Path(args.input)) if args.kind in (None, kind_of(r))]
        print(table(records))
        faults = problems(records)
        if faults:
            print("\n".join(faults))
            raise UserError(f"{args.input}: {len(faults)} problems in {len(records)} records, first: {faults[0]}")
        print(f"{len(records)} records, no problems")
        if args.output:
            jsonl.write_lines(args.output, map(jsonl.dump_line, records))
            print(f"written: {args.output}")


if __name__ == "__main__":
    run_command(main)
