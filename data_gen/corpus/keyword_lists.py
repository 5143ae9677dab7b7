"""Lists of keywords: the project's own, and files that a user has (plain text, hunspell, MeSH, MMedLM's keywords.py).

The lists in `keywords/` were written for this project: 200 words a language. A line of them is a keyword, or a keyword
with "|" before the ending that may change: "biops|y" stands for "biopsy" and is also found in "biopsies". Lines that
begin with "#" are comments.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from data_gen.corpus.text_forms import nfkc
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.languages.declarations import DECLARATIONS

FOLDER = Path(__file__).with_name("keywords")
SUFFIXES = (".txt", ".dic", ".bin", ".xml", ".py")
_CODES = tuple(language.code for language in DECLARATIONS)


class Keyword(NamedTuple):
    """A keyword as it is written, and the part that every form begins with ("" where only `word` itself counts)."""

    word: str
    stem: str = ""

    @property
    def form(self) -> str:
        """What is looked for in a text that is `normal`: the stem or the word, single spaces inside and none around."""
        return " ".join(normal(self.stem or self.word).split())


def normal(text: str) -> str:
    """The form in which keywords and texts are compared: NFKC, lower case, Russian ё as е.

    Lengths are those of this form: a few letters become two when they are lowered.
    """
    return nfkc(text).lower().replace("ё", "е")


def parse_keyword(line: str) -> Keyword:
    """A line of a list: "biops|y" -> Keyword("biopsy", "biops")."""
    stem, bar, ending = line.partition("|")
    return Keyword(stem + ending, stem) if bar else Keyword(line)


def own_list(language: str) -> Path:
    """The project's own list of a language. Raises UserError where there is none."""
    path = FOLDER / f"{language}.txt"
    if not path.exists():
        raise UserError(f"no list of keywords for language {language!r}{nearest(language, _CODES)}")
    return path


def read_keywords(path: Path | str, language: str) -> list[Keyword]:
    """Keywords of a file, each once (after `normal`), in the file's order; the suffix says what the file is.

      .txt  a keyword a line, "#" begins a comment line, "|" stands before an ending (see the module's head)
      .dic  hunspell: the flags behind "/" are left away; the encoding is what the .aff file beside it names, or UTF-8
      .bin  MeSH in ASCII format: the headings (MH = ...) of descriptors
      .xml  MeSH in XML: DescriptorName of every DescriptorRecord
      .py   lists named <language>_..._words, as the keywords.py of MMedLM's repository has them; read, never run
    An inverted heading of MeSH ("Abdomen, Acute") is put into the order of running text ("Acute Abdomen").

    Raises UserError: no such file, a suffix that is none of these, a file without a keyword or in another encoding.
    """
    path = Path(path)
    readers = {".txt": _plain, ".dic": _hunspell, ".bin": _mesh_ascii, ".xml": _mesh_xml, ".py": _python_lists}
    if path.suffix.lower() not in readers:
        raise UserError(f"not a list of keywords: {path.suffix or 'no suffix'}, not {', '.join(SUFFIXES)}", place=path)
    if not path.is_file():
        raise UserError("no such file", place=path)
    found: dict[str, Keyword] = {}
    try:
        for keyword in readers[path.suffix.lower()](path, language):
            if form := keyword.form:
                found.setdefault(form, keyword)
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not {error.encoding}", place=path, hint="; save it as UTF-8") from error
    if not found:
        raise UserError(f"no keyword of language {language!r} in it", place=path)
    return list(found.values())


def read_folder(folder: Path | str) -> dict[str, Path]:
    """The lists of a folder, by language: en.txt, fr.dic, ... Raises UserError for none, or two of one language."""
    lists: dict[str, Path] = {}
    for path in sorted(Path(folder).glob("*")):
        if path.stem in _CODES and path.suffix.lower() in SUFFIXES:
            if path.stem in lists:
                raise UserError(f"two lists of {path.stem}: {lists[path.stem].name} and {path.name}", place=folder)
            lists[path.stem] = path
    if not lists:
        raise UserError("no list of keywords in it", place=folder, hint="; a list is named en.txt, zh.txt, fr.dic, ...")
    return lists


def _plain(path: Path, language: str) -> Iterator[Keyword]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if (line := line.strip()) and not line.startswith("#"):
            yield parse_keyword(line)


def _hunspell(path: Path, language: str) -> Iterator[Keyword]:
    rules = path.with_suffix(".aff")
    named = re.search(rb"^\s*SET\s+(\S+)", rules.read_bytes(), re.MULTILINE) if rules.is_file() else None
    encoding = named.group(1).decode("ascii", "replace").removeprefix("microsoft-") if named else "utf-8-sig"
    try:
        lines = path.read_bytes().decode(encoding).splitlines()
    except LookupError as error:
        raise UserError(f"unknown encoding {encoding!r}", place=rules) from error
    for number, line in enumerate(lines):
        word = re.split(r"(?<!\\)/|\t", line.strip(), maxsplit=1)[0].replace("\\/", "/").strip()
        if word and not word.startswith("#") and not (number == 0 and word.isdigit()):
            yield Keyword(word)


def _upright(heading: str) -> str:
    """A heading in the order of running text: "Abdomen, Acute" -> "Acute Abdomen"."""
    parts = [part.strip() for part in heading.split(", ")]
    return " ".join(reversed(parts)) if len(parts) == 2 else heading.strip()


def _mesh_ascii(path: Path, language: str) -> Iterator[Keyword]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("MH = "):
                yield Keyword(_upright(line[5:].rstrip("\r\n")))


def _mesh_xml(path: Path, language: str) -> Iterator[Keyword]:
    try:
        for _, element in ElementTree.iterparse(path):
            if element.tag == "DescriptorRecord":
                # The first one is the descriptor's own; others below it name its qualifiers and see-also descriptors.
                if name := element.findtext("DescriptorName/String"):
                    yield Keyword(_upright(name))
                element.clear()
    except ElementTree.ParseError as error:
        raise UserError(f"not XML: {error}", place=path) from error


def _python_lists(path: Path, language: str) -> Iterator[Keyword]:
    """Keywords of `<language>_medical_words = ["...", ...]`; a language may go by any of its names ("jp")."""
    codes = {name: row.code for row in DECLARATIONS for name in (row.code, *row.aliases)}
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"not Python: {error.msg} in line {error.lineno}", place=path) from error
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.List | ast.Tuple | ast.Set):
            continue
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if any(codes.get(name.lower().split("_")[0]) == language and name.endswith("_words") for name in names):
            yield from _strings(node.value.elts)


def _strings(nodes: Iterable[ast.expr]) -> Iterator[Keyword]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Keyword(node.value.strip())
