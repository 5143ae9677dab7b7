"""Record sets as TFDS folders in ArrayRecord files: random access, splits, no TensorFlow.

Layout, one for both record kinds, so that any TFDS reader can filter without parsing:
    record       the whole record as one line of JSON, what `read_tfds` gives back
    id, kind, language, source, license, method, group (""  when none): text;  needs_image: bool
The folder is NAME/VERSION/ below `path`, as TFDS expects: dataset_info.json, features.json, NAME-SPLIT.array_record-*.
"""

import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.input_files import check_file, open_file
from mmed_jax.data.records.schema import kind_of, validate_record

_TEXT_FEATURES = {
    "record": "the whole record, one line of JSON (mmed_jax/data/records/schema.py)",
    "id": "unique in the set",
    "kind": "instruction or mcq",
    "language": "en, zh, ja, ko, fr, es or ru",
    "source": "the data set it comes from or was made of",
    "license": "of that data set; it holds for derived rows too",
    "method": "original, answer_expanding, qa_generation, translation or handcrafted",
    "group": "shared by parallel versions of one question and all that was made of it",
}


def write_tfds(
    path: str | os.PathLike,
    name: str,
    version: str,
    splits: dict[str, Iterable[dict]],
    description: str = "",
    citation: str = "",
) -> Path:
    """Writes record sets as one TFDS set and returns its folder, `path`/`name`/`version`.

    Records are checked and keep their order; the same records give the same bytes. Written under a temporary name and
    renamed when whole; an older set of the same version is replaced. Raises UserError for a bad
    name or version, RecordError for a bad record.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"data set name '{name}': use lower-case letters, digits and _, for example mmed_ift")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise UserError(f"data set version '{version}': use three numbers, for example 1.0.0")
    folder = Path(path) / name / version
    Path(path).mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-{version}.", dir=path))
    try:
        builder = _builder(temporary, name, version, splits, description, citation)
        # Its progress texts go nowhere: the command that calls this has its own.
        with contextlib.redirect_stdout(io.StringIO()), _ordered_fields():
            builder.download_and_prepare()
        folder.parent.mkdir(parents=True, exist_ok=True)
        old = temporary / "old"
        if folder.exists():
            folder.rename(old)
        Path(builder.data_dir).rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _ordered_fields() -> Iterator[None]:
    """Fields of an example are serialized in order, so that the same records give the same bytes.

    protobuf leaves the order of a map open and changes it from process to process.
    """
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    original = ExampleSerializer.serialize_example
    ExampleSerializer.serialize_example = lambda self, example: self.get_tf_example(example).SerializeToString(
        deterministic=True
    )
    try:
        yield
    finally:
        ExampleSerializer.serialize_example = original


def _builder(
    data_dir: Path, name: str, version: str, splits: dict[str, Iterable[dict]], description: str, citation: str
):
    import numpy as np
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    def examples(split: str, records: Iterable[dict]) -> Iterator[tuple[int, dict]]:
        for number, record in enumerate(records):
            record = validate_record(record, f"record {number + 1} of split {split}")
            columns = {key: record[key] for key in ("id", "language", "source", "license", "method")}
            group = record["provenance"].get("group", "")
            image = record.get("needs_image", False)
            line = jsonl.dump_line(record)
            yield number, {"record": line, "kind": kind_of(record), "group": group, "needs_image": image, **columns}

    # TFDS keeps a global table of builders by class name; ours come and go.
    with tfds.core.registered.skip_registration():

        class RecordSet(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(version)

            def _info(self) -> tfds.core.DatasetInfo:
                features = {key: tfds.features.Text(doc=doc) for key, doc in _TEXT_FEATURES.items()}
                features["needs_image"] = tfds.features.Scalar(np.bool_, doc="the question points at a figure")
                return tfds.core.DatasetInfo(
                    builder=self,
                    description=description or "Records of mmed_jax; layout: mmed_jax/data/records/tfds.py.",
                    features=tfds.features.FeaturesDict(features),
                    citation=citation or None,
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager: object) -> dict:
                return {split: examples(split, records) for split, records in splits.items()}

            def _generate_examples(self, **kwargs: object) -> Iterator:
                raise AssertionError("every split brings its own generator")

    RecordSet.name = name
    return RecordSet(data_dir=str(data_dir), file_format="array_record")


def version_folder(path: str | os.PathLike) -> Path | None:
    """The folder that holds dataset_info.json: `path` itself or its newest N.N.N subfolder, else None."""
    path = Path(path)
    if (path / "dataset_info.json").is_file():
        return path
    versions = [p for p in path.glob("*.*.*") if (p / "dataset_info.json").is_file()]
    return max(versions, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)], default=None)


def splits(folder: Path) -> list[str]:
    """Names of the splits of a TFDS folder, in its order. Raises UserError when it is not in ArrayRecord files."""
    try:
        with open_file(folder / "dataset_info.json") as f:
            info = jsonl.loads(f.read(), dict)
        names, file_format = [str(s["name"]) for s in info["splits"]], info.get("fileFormat")
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder}/dataset_info.json: damaged ({e})") from None
    if file_format != "array_record":
        raise UserError(f"{folder}: written as {file_format}, which needs TensorFlow; write it with array_record")
    return names


def read_tfds(path: str | os.PathLike, split: str) -> Iterator[dict]:
    """Yields the records of one split in order, unchecked. Raises UserError when the folder or split can't be read."""
    folder = version_folder(path)
    if folder is None:
        raise UserError(f"{path}: no TFDS set here (no dataset_info.json)")
    present = splits(folder)
    if split not in present:
        raise UserError(f"{folder}: no split '{split}'{nearest(split, present)}")
    for file in sorted(folder.iterdir()):  # what its readers would open without a look
        if not file.is_dir():
            check_file(file)
    import tensorflow_datasets as tfds

    try:
        source = tfds.builder_from_directory(str(folder)).as_data_source(split=split)
        count = len(source)
    except Exception as e:  # array_record raises bare RuntimeError and ValueError for damaged files
        raise UserError(f"{folder}: split '{split}' can't be read: {e}") from None
    for number in range(count):
        where = f"{folder}:{split}:{number + 1}"
        try:
            example = source[number]
        except Exception as e:
            raise UserError(f"{where}: can't be read, the file is damaged: {e}") from None
        if not isinstance(example, dict) or "record" not in example:
            raise UserError(f"{folder}: no feature 'record'; this TFDS set was not written by data_gen")
        line = example["record"]
        if not isinstance(line, bytes):  # what a truncated file gives
            raise UserError(f"{where}: can't be read, the file is damaged")
        if len(line) > jsonl.MAX_LINE:
            raise UserError(f"{where}: a record of more than {jsonl.MAX_LINE >> 20} MiB")
        record = jsonl.parse_json(jsonl.decode(line, where), where)
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected a JSON object, got a {type(record).__name__}")
        yield record
