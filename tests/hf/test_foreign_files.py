"""Files that somebody else made: broken in every way, they give one line, in bounded time and memory."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from mmed_jax.common import jsonl
from mmed_jax.common.checksums import write_manifest
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.journal import Journal
from mmed_jax.data.packed_cache import problem_of
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import RecordError, validate_record
from mmed_jax.data.records.tfds import splits
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
from mmed_jax.evaluation.comparison.runs import read_runs
from mmed_jax.hf.load import load_config, read_generation, read_tensors
from mmed_jax.hf.save import check_output
from mmed_jax.model.config import LlamaConfig
from tests.support.tokenizer import tiny_tokenizer

DEEP = "[" * 100_000 + "]" * 100_000
JSON = {
    "deep": DEEP,
    "deep enough to be read and not walked through": "[" * 700 + "]" * 700,
    "deep in an object": '{"model_type": "llama", "x": ' + DEEP + "}",
    "long integer": '{"model_type": "llama", "key": ' + "9" * 5000 + "}",
    "a list": "[]",
    "null": "null",
    "a number": "3",
    "a text": '"config"',
    "cut": '{"model_type": "llama", "vocab',
    "nothing": "",
    "not UTF-8": b'{"model_type": "\xff"}',
    "UTF-16": json.dumps({"model_type": "llama"}).encode("utf-16"),
}


def journal(folder: Path) -> None:
    (folder / "out.jsonl").write_text('{"id": "1"}\n')
    Journal(folder / "out.jsonl", {"seed": 1})


def table(folder: Path) -> None:
    write_manifest(folder)
    if problem := problem_of(folder, "k"):
        raise UserError(f"{folder}/table.json: {problem}")


def tokenizer(folder: Path) -> None:
    made = folder.parent / "tokenizer"
    if not made.is_dir():
        tiny_tokenizer(folder.parent).rename(made)
    for file in made.iterdir():
        if not (folder / file.name).exists():
            shutil.copy(file, folder)
    load_tokenizer(folder)


CONFIG = LlamaConfig(97, 48, 80, 2, 4, 2, 12)
# What reads a file of this name in a folder.
READERS = {
    "config.json": load_config,
    "generation_config.json": read_generation,
    "model.safetensors.index.json": lambda f: ((f / "config.json").write_text("{}"), read_tensors(f, CONFIG)),
    "tokenizer.json": tokenizer,
    "tokenizer_config.json": tokenizer,
    "special_tokens_map.json": tokenizer,
    "dataset_info.json": splits,
    "table.json": table,
    "out.settings.json": journal,
    "results.json": lambda f: read_runs([str(f)]),
    "mmed_jax_export.json": lambda f: check_output(f, overwrite=True),
    "records.jsonl": lambda f: list(read_records(f / "records.jsonl")),
}


@pytest.mark.parametrize("name", READERS)
def test_broken_json_is_one_line_that_names_the_file(name, tmp_path):
    for number, (kind, text) in enumerate(JSON.items()):
        if name == "records.jsonl" and kind == "nothing":
            continue  # a file of no records is none that is broken
        folder = tmp_path / f"f{number}"
        folder.mkdir()
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises((UserError, WorkError)) as e:
            READERS[name](folder)
        assert name in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 500, (kind, str(e.value))
        assert str(e.value).count(str(folder)) == 1, str(e.value)


def test_records_that_cannot_be_walked_through():
    record = {
        "id": "1",
        "language": "en",
        "messages": [{"role": "user", "content": "Is iron low?"}, {"role": "assistant", "content": "Yes."}],
    }
    for depth, refused in ((150, False), (250, True), (900, True), (100_000, True)):
        value: object = "x"
        for _ in range(depth):
            value = [value] if depth % 4 else {"k": value}
        given = {**record, "provenance": {"deep": value}}
        if refused:
            with pytest.raises(RecordError, match="provenance.*200 deep"):
                validate_record(given, "x.jsonl:1")
        else:
            assert jsonl.loads(jsonl.dump_line(validate_record(given, "x.jsonl:1"))) == {
                **given,
                "source": "user",
                "license": "unspecified",
                "method": "original",
            }


def pack(folder: Path, name: str, line: bytes, count: int) -> Path:
    """`count` times `line` as NAME.jsonl, packed as its ending says."""
    path = folder / name
    if name.endswith(".gz"):
        with gzip.open(path, "wb", 1) as f:
            for _ in range(count):
                f.write(line)
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
            with z.open("Train/x.jsonl", "w", force_zip64=True) as f:
                for _ in range(count):
                    f.write(line)
    else:
        with path.open("wb") as f:
            f.seek(len(line) * count - 1)  # a file of holes: zeros that take no place
            f.write(b"\0")
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.zip"])
def test_a_line_without_end_is_bounded(name, tmp_path):
    path = pack(tmp_path, name, b"\0" * (1 << 20), 200)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"x.jsonl.*:1: a line of more than 64 MiB|x.zip/.*:1: a line of more"):
        list(read_records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 << 20


def test_blank_lines_without_end_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_BLANK_LINES", 1000)
    path = pack(tmp_path, "x.jsonl.gz", b"\n" * 2000, 2)
    with pytest.raises(UserError, match="x.jsonl.gz:1001: more than 1,000 blank lines"):
        list(read_records(path))


def test_a_folder_of_records_says_what_is_no_file(tmp_path):
    """A link to nowhere among the files of a folder was passed over, and its rows with it."""
    for make in (lambda p: p.symlink_to("/nowhere/x.jsonl"), os.mkfifo, lambda p: p.symlink_to("/dev/zero")):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        make(folder / "more.jsonl")
        with pytest.raises(UserError, match="more.jsonl: is a"):
            list(read_records(folder))
    with pytest.raises(UserError, match="x.jsonl: is a link to .*, which is not there"):
        (tmp_path / "x.jsonl").symlink_to(tmp_path / "y.jsonl")
        list(read_records(tmp_path / "x.jsonl"))


TEMPLATES = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "memory": '{{ "a" * 20000000000 }}',
    "memory of a filter": '{{ "a" | center(20000000000) }}',
    "doubling": "{% set n = namespace(v='a') %}{% for i in range(60) %}{% set n.v = n.v ~ n.v %}{% endfor %}{{ n.v }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "broken": "{% for %}",
    "attributes": "{{ messages.__class__.__mro__ }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_foreign_template_is_compared_in_bounds(name, tmp_path, capsys, monkeypatch):
    """By its own computing time, also where a profiler has been used before: nobody waits for WAIT_SECONDS."""
    waited, run = [], subprocess.run

    def run_and_tell(*args, **options):
        # A profiler leaves the signal ignored, and children inherit that. Only the child's is set here: the profiler
        # of this process may have a handler and a running timer that Python's signal module knows nothing of.
        options["preexec_fn"] = lambda: signal.signal(signal.SIGPROF, signal.SIG_IGN)
        try:
            return run(*args, **options)
        except subprocess.TimeoutExpired:
            waited.append(args)
            raise

    monkeypatch.setattr(subprocess, "run", run_and_tell)
    folder = tiny_tokenizer(tmp_path)
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    load_tokenizer(folder)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "chat template differs" in err and not waited


def test_a_tokenizer_folder_of_pipes_ends(tmp_path):
    """In a process of its own, which is killed when it waits for one of them."""
    made = tiny_tokenizer(tmp_path)
    names = sorted(p.name for p in made.iterdir())
    assert {"tokenizer.json", "tokenizer_config.json"} < set(names)
    for name in names:
        shutil.copytree(made, tmp_path / name)
        (tmp_path / name / name).unlink()
        os.mkfifo(tmp_path / name / name)
    code = """if True:
        import sys
        from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
        from mmed_jax.common.errors import UserError
        for folder in sys.argv[1:]:
            try:
                load_tokenizer(folder)
            except UserError as e:
                print(e)
    """
    argv = [sys.executable, "-c", code, *(str(tmp_path / n) for n in names)]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    assert [line.endswith("is a named pipe; a regular file is needed") for line in run.stdout.splitlines()] == [
        True
    ] * len(names), run.stdout


def test_every_command_says_what_is_no_file(tmp_path):
    """Pipes, devices and links to nowhere, in each place where a command takes a file of the user's."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "gone.jsonl").symlink_to("/nowhere/x.jsonl")
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "predictions.jsonl")
    code = """if True:
        import sys
        from data_gen.commands.handcraft import _of_any_kind
        from mmed_jax.llm_api.prices import price_of
        from mmed_jax.data.packed_cache import content_hash
        from mmed_jax.data.records.reading import load_files
        from mmed_jax.common.errors import UserError
        from mmed_jax.evaluation.ratings.explanations import load_runs
        from mmed_jax.evaluation.ratings.sheets import read_ratings
        from mmed_jax.inference.prompt_files import read_prompts
        from pathlib import Path
        folder = Path(sys.argv[1])
        readers = (read_prompts, lambda p: load_files([p], "mcq"), read_ratings, _of_any_kind,
                   lambda p: price_of("m", p, None), content_hash)
        asked = [(r, folder / n) for r in readers for n in ("pipe.jsonl", "zero.jsonl", "gone.jsonl")]
        asked += [(lambda p: load_runs({"a": p}), folder / "run"), (read_prompts, folder / "pipe.txt")]
        for read, path in asked:
            try:
                found = read(str(path) if read is read_prompts else path)
                list(found)
                print("nothing said", path)
            except UserError as e:
                print(e)
    """
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 20 and all(": is a" in line for line in lines), run.stdout + run.stderr
