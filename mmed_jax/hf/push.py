"""A finished export goes up to the Hugging Face hub (common.hub_upload), when it is whole and its name is allowed."""

from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.hub_upload import check_access, check_name, upload
from mmed_jax.hf.export_folder import MARKER, README
from mmed_jax.hf.licences import name_problem
from mmed_jax.hf.provenance import KEY

# Of an earlier upload: shards that the new folder does not have are removed, a reader could take them for its own.
_STALE = ("*.safetensors", "*.safetensors.index.json")


def check_push(name: str, licence: str) -> None:
    """What can be said before any work: the name, the token, whether the hub may be asked at all.

    Args:
      name: ORG/NAME. licence: of the base (hf.licences).

    Raises:
      UserError: a name that the hub or the base's licence refuses, no token, offline.
    """
    check_name("--push", name)
    if problem := name_problem(licence, name.rpartition("/")[2]):
        raise UserError(f"--push={name}: {problem}")
    check_access("--push")


def check_whole(folder: Path) -> None:
    """Refuses a folder that is no whole export of this program.

    Raises:
      UserError: no export, or files are missing, of another size, or were added.
    """
    try:
        sizes = jsonl.loads((folder / MARKER).read_bytes(), dict)["files"]
        found = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != MARKER}
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"--push: {folder} is no export of this program; write one first with --output=DIR") from e
    # The card is there to be completed by its author.
    changed = sorted(n for n in found.keys() | sizes.keys() if found.get(n) != sizes.get(n) and n != README)
    if changed:
        raise UserError(f"--push: {folder} is not as it was exported: {', '.join(changed[:5])}; export it anew")


def recorded_licence(folder: Path) -> str:
    """The licence of an export's base, as its marker has it; "" where that does not say."""
    provenance = jsonl.loads((folder / MARKER).read_bytes(), dict).get(KEY)
    return provenance["base"]["licence"] if isinstance(provenance, dict) else ""


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads a folder into the model repository `name`; address and errors of common.hub_upload.upload."""
    again = f"python -m mmed_jax.export --model={folder} --push={name}"
    return upload("--push", folder, name, private=private, stale=_STALE, again=again)
