"""Text of a picture of a page: tesseract as a process for each page, or rapidocr in this one.

Character error rates by language: docs/corpus.md, scripts/bench_ocr.py.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.corpus.page_columns import split_columns
from data_gen.corpus.pdf_settings import PdfSettings
from data_gen.corpus.units import BY_FOLDER, InputFile, stated_language
from mmed_jax.common.errors import UserError, one_line
from mmed_jax.data.records.schema import LANGUAGE_NAMES

# tesseract's names of its data; Debian's package is tesseract-ocr-NAME with - for _.
TESSERACT = {"en": "eng", "zh": "chi_sim", "ja": "jpn", "ko": "kor", "fr": "fra", "es": "spa", "ru": "rus"}
VERTICAL = "jpn_vert"
# Why the models in rapidocr's wheel (Chinese, Japanese, Latin letters) are not for the others.
RAPIDOCR_REFUSED = {
    "ko": "the models in its wheel read hangul as other letters, and say that they are sure",
    "ru": "the models in its wheel read Cyrillic as Latin letters, and say that they are sure",
}
# tesseract's layouts of a page: found by itself; one column; one block of vertical text.
_LAYOUT, _COLUMN_LAYOUT, _VERTICAL_LAYOUT = "3", "4", "5"
# Where it takes gaps between letters for columns (four letters of five were wrong then): columns are cut apart for it.
_BY_COLUMN = ("ko",)
_QUERY_TIMEOUT_S = 60


class OcrProblem(Exception):
    """A picture that could not be read. `reason` as a Reject has it, `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def ocr_dependencies(
    sources: Mapping[str, Mapping[str, Any]], files: Sequence[InputFile]
) -> tuple[dict[str, str], dict[str, Path]]:
    """({source: engine with its version}, {name: file of the engine's data}) that the PDF files among `files` need.

    sources: the entries of the recipe. Sources without PDF files, and with ocr = "off", need nothing.

    Raises:
      UserError: an engine, or its data for a language, is not there, with the package that has it; a file's language is
        not known.
    """
    versions: dict[str, str] = {}
    data: dict[str, Path] = {}
    for name, source in sources.items():
        settings = PdfSettings(**source["pdf"])
        books = [f for f in files if f.source == name and f.format == "pdf"]
        if not books or settings.ocr == "off":
            continue
        off = f", or --recipe.source.{name}.pdf.ocr=off"
        languages = {stated_language(source["language"], f.name): f.path for f in books}
        if "" in languages:
            place = "lies in no folder of a language" if source["language"] == BY_FOLDER else "has no language"
            problem = f"{languages['']}: {place}, and pictures of pages are read by language"
            raise UserError(f"source.{name}: {problem}", hint=f"; set --recipe.source.{name}.language{off}")
        try:
            check_engine(settings, languages)
            versions[name] = engine_version(settings)
            data |= engine_files(settings, languages)
        except UserError as e:
            raise UserError(f"source.{name}: {e.problem}", hint=f"{e.hint}{off}") from e
    return versions, data


def check_engine(settings: PdfSettings, languages: Iterable[str]) -> None:
    """Whether pictures of pages in these languages can be read here.

    Raises UserError: the program or module is missing; a language has no data, or is read badly by this engine.
    """
    languages = sorted(set(languages))
    if settings.vertical and languages != ["ja"]:
        raise UserError(f"pdf.vertical: is for Japanese, not for {LANGUAGE_NAMES[(set(languages) - {'ja'}).pop()]}")
    if settings.ocr == "rapidocr":
        _check_rapidocr(languages)
    if settings.ocr == "tesseract":
        there = tesseract_data()
        for language in languages:
            name = _data_name(language, settings)
            if name not in there:
                raise UserError(
                    f"tesseract has no data for {LANGUAGE_NAMES[language]} ({name})",
                    hint=f"; apt-get install tesseract-ocr-{name.replace('_', '-')}",
                )


def _check_rapidocr(languages: Iterable[str]) -> None:
    for language in languages:
        if reason := RAPIDOCR_REFUSED.get(language):
            raise UserError(f"pdf.ocr=rapidocr: not for {LANGUAGE_NAMES[language]}: {reason}", hint="; use tesseract")
    missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"pdf.ocr=rapidocr: {', '.join(missing)} not installed", hint='; pip install "mmed_jax[ocr]"')


def tesseract_data() -> dict[str, Path | None]:
    """{name of data: its file, None where tesseract does not say} of what is installed. Raises UserError."""
    listed = _tesseract("--list-langs")
    folder = re.search(r'"(.*)"', listed)
    names = [line.strip() for line in listed.split("\n")[1:] if line.strip()]
    paths = {name: Path(folder.group(1)) / f"{name}.traineddata" if folder else None for name in names}
    return {name: path if path is not None and path.is_file() else None for name, path in paths.items()}


def engine_version(settings: PdfSettings) -> str:
    """What pictures are read by, with its version. Raises UserError where it is not there."""
    if settings.ocr == "rapidocr":
        return f"rapidocr {importlib.metadata.version('rapidocr')}"
    return _tesseract("--version").split("\n")[0].strip()


def engine_files(settings: PdfSettings, languages: Iterable[str]) -> dict[str, Path]:
    """Files that what is read depends on, by name. Raises UserError."""
    if settings.ocr != "tesseract":
        return {}
    there = tesseract_data()
    files = {f"tesseract/{name}": there.get(name) for name in (_data_name(code, settings) for code in languages)}
    return {name: path for name, path in files.items() if path is not None}


def read_image(image: tuple[int, int, int, bytes], language: str, settings: PdfSettings) -> str:
    """The text of a picture of a page.

    Args:
      image: width, height, dots an inch, rows of grey (uint8).

    Raises:
      OcrProblem: it takes too long, or the engine fails on it. UserError: the engine is not there.
    """
    if settings.ocr == "rapidocr":  # which has no idea of columns
        width, height, _, grey = image
        return "\n".join(map(_rapidocr, split_columns(width, height, grey)))
    return _tesseract_page(image, language, settings)


def _data_name(language: str, settings: PdfSettings) -> str:
    return VERTICAL if settings.vertical and language == "ja" else TESSERACT[language]


def _tesseract_page(image: tuple[int, int, int, bytes], language: str, settings: PdfSettings) -> str:
    width, height, dpi, grey = image
    layout = _VERTICAL_LAYOUT if settings.vertical else _LAYOUT
    parts = [(width, height, grey)]
    if language in _BY_COLUMN:
        layout, parts = _COLUMN_LAYOUT, split_columns(width, height, grey)
    arguments = ["-l", _data_name(language, settings), "--psm", layout, "--dpi", str(dpi)]
    return "\n".join(_tesseract_part(part, arguments, settings.timeout_s) for part in parts)


def _tesseract_part(part: tuple[int, int, bytes], arguments: Sequence[str], timeout_s: float) -> str:
    """Text of a picture: width, height, rows of grey."""
    try:
        # A thread a page: more of them are slower together than tasks are.
        done = subprocess.run(
            [_program(), "-", "-", *arguments],
            input=b"P5 %d %d 255\n" % part[:2] + part[2],
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )
    except subprocess.TimeoutExpired:
        raise OcrProblem("ocr_timeout", f"tesseract did not read it in {timeout_s:g} s") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().split("\n")
        raise OcrProblem("ocr_failed", f"tesseract ended with {done.returncode}: {lines[-1][:150]}")
    return done.stdout.decode("utf-8", "replace").replace("\f", "")


def _tesseract(flag: str) -> str:
    """What the program says of itself. Raises UserError."""
    try:
        done = subprocess.run([_program(), flag], capture_output=True, timeout=_QUERY_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise UserError(f"tesseract {flag}: {one_line(e)}") from e
    said = (done.stdout or done.stderr).decode("utf-8", "replace")
    if done.returncode:
        raise UserError(f"tesseract {flag}: {said.strip().split(chr(10))[0] or f'exit code {done.returncode}'}")
    return said


def _program() -> str:
    path = shutil.which("tesseract")
    if path is None:
        raise UserError("pdf.ocr=tesseract: no program 'tesseract' on PATH", hint="; apt-get install tesseract-ocr")
    return path


def _rapidocr(part: tuple[int, int, bytes]) -> str:
    """Text of a picture: width, height, rows of grey."""
    import numpy as np

    width, height, grey = part
    picture_hwc = np.repeat(np.frombuffer(grey, np.uint8).reshape(height, width, 1), 3, axis=2)
    try:
        result = _rapidocr_engine()(picture_hwc)
    except Exception as e:  # of onnxruntime or OpenCV
        raise OcrProblem("ocr_failed", f"rapidocr: {one_line(e)}"[:200]) from e
    return "\n".join(result.txts or ())


@functools.cache
def _rapidocr_engine():
    from rapidocr import RapidOCR

    threads = "EngineConfig.onnxruntime.intra_op_num_threads"
    return RapidOCR(params={threads: 1, "Global.log_level": "error"})
