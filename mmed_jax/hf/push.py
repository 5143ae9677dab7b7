"""A finished export goes up to the Hugging Face hub (common.hub_upload), when it is whole and its name is allowed."""

import json
from collections.abc import Sequence
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.byte_bar import ByteBar
from mmed_jax.common.errors import UserError
from mmed_jax.common.hub_upload import check_access, check_name, upload
from mmed_jax.hf.export_folder import MARKER, README
from mmed_jax.hf.folder_hash import hash_files
from mmed_jax.hf.licences import licences_of, names_problem
from mmed_jax.hf.provenance import KEY, without_places

# Of an earlier upload: shards that the new folder does not have are removed, a reader could take them for its own.
_STALE = ("*.safetensors", "*.safetensors.index.json")
_ADAPTER = "adapter_config.json"


def check_push(name: str, licences: Sequence[str]) -> None:
    """What can be said before any work: the name, the token, whether the hub may be asked at all.

    Args:
      name: ORG/NAME. licences: of the base, of a mean those of its parents (hf.licences.licences_of).

    Raises:
      UserError: a name that the hub or a licence refuses, no token, offline.
    """
    check_name("--push", name)
    if problem := names_problem(licences, name.rpartition("/")[2]):
        raise UserError(f"--push={name}: {problem}")
    check_access("--push")


def check_whole(folder: Path) -> None:
    """Refuses a folder that is no whole export of this program; all files are read.

    Raises:
      UserError: no export, or files are missing, were changed or added; an adapter whose base only this machine has.
    """
    try:
        marker = jsonl.loads((folder / MARKER).read_bytes(), dict)
        sizes, hashes = dict(marker["files"]), dict(marker.get("sha256") or {})
        found = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != MARKER}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"--push: {folder} is no export of this program; write one first with --output=DIR") from e
    # The card is there to be completed by its author.
    changed = sorted(n for n in found.keys() | sizes.keys() if found.get(n) != sizes.get(n) and n != README)
    if not changed:
        files = [p for n in sorted(found.keys() & hashes.keys() - {README}) if (p := folder / n).is_file()]
        changed = [n for n, digest in hash_files(files, ByteBar("hashing")).items() if hashes[n] != digest]
    if changed:
        raise UserError(f"--push: {folder} is not as it was exported: {', '.join(changed[:5])}; export it anew")
    if (folder / _ADAPTER).is_file():
        check_base(str(jsonl.loads((folder / _ADAPTER).read_bytes(), dict).get("base_model_name_or_path")))


def check_base(name: str) -> None:
    """Refuses an adapter whose base is known by a path of this machine. Raises UserError."""
    if name.startswith(("/", "~", ".")):
        raise UserError(
            f"--push: the adapter's base is known by a path of this machine alone ({name}); export it with "
            "--base_name=ORG/MODEL, what readers elsewhere call it"
        )


def recorded_licences(folder: Path) -> list[str]:
    """The licences of an export's base and parents, as its marker has them. Raises UserError: it is damaged."""
    provenance = jsonl.loads((folder / MARKER).read_bytes(), dict).get(KEY)
    try:
        return licences_of(provenance) if provenance else []
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"--push: {MARKER} in {folder} is damaged; export it anew") from e


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads a folder into the model repository `name`; address and errors of common.hub_upload.upload.

    Of places on this machine the uploaded record has the last name alone: an audit finds them by it.
    """
    again = f"python -m mmed_jax.export --model={folder} --push={name}{' --private' if private else ''}"
    marker = without_places(jsonl.loads((folder / MARKER).read_bytes(), dict))
    text = json.dumps(marker, indent=2, ensure_ascii=False) + "\n"
    instead = {MARKER: text.encode()}
    return upload("--push", folder, name, private=private, stale=_STALE, instead=instead, again=again)
