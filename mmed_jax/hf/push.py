"""A finished folder goes up to the Hugging Face hub: checked before anything is made, each failure one line.

The token comes from the environment alone (HF_TOKEN) and is in no message. huggingface_hub uploads; what the hub holds
already is not sent again, so that an upload that broke off is continued by the same call.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import ReportedError, UserError, WorkError, one_line
from mmed_jax.hf.export_folder import MARKER, README
from mmed_jax.hf.licences import name_problem
from mmed_jax.hf.provenance import KEY

TOKEN = "HF_TOKEN"
# Of an earlier upload: shards that the new folder does not have are removed, a reader could take them for its own.
_STALE = ["*.safetensors", "*.safetensors.index.json"]
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")


def check_push(name: str, licence: str) -> None:
    """What can be said before any work: the name, the token, whether the hub may be asked at all.

    Args:
      name: ORG/NAME. licence: of the base (hf.licences).

    Raises:
      UserError: a name that the hub or the base's licence refuses, no token, offline.
    """
    parts = name.split("/")
    if len(parts) != 2 or not all(_NAME.fullmatch(p) and "--" not in p and ".." not in p for p in parts):
        raise UserError(
            f"--push={name}: is no name on the hub; give ORG/NAME, each of letters, digits, -, _ and ., which "
            "begins and ends with a letter or digit"
        )
    if len(name) > 96 or name.endswith(".git"):
        raise UserError(f"--push={name}: the hub takes names of 96 characters at most that do not end in .git")
    if problem := name_problem(licence, parts[1]):
        raise UserError(f"--push={name}: {problem}")
    if is_offline():
        raise UserError("--push: the hub is not asked in offline mode; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
    if not os.environ.get(TOKEN, "").strip():
        raise UserError(
            f"--push: no token; set the environment variable {TOKEN} to one that may write "
            "(huggingface.co/settings/tokens)"
        )


def is_offline() -> bool:
    """Whether the environment forbids huggingface_hub to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


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
    """Uploads a folder into the model repository `name`, which is made where there is none.

    Args:
      folder: whole, every file of it goes up. name: ORG/NAME. private: of a new repository; an existing one is not
        changed.

    Returns:
      The address of the model's page.

    Raises:
      UserError: the token or the name is refused; --private and the repository is public.
      WorkError: the hub does not answer, or not to the end.
    """
    from huggingface_hub import HfApi

    token = os.environ.get(TOKEN, "").strip()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise UserError(
                f"--private: {name} is there and public; make it private on its page, or leave the flag out"
            )
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Written by mmed_jax", delete_patterns=list(_STALE)
        )
    except ReportedError:
        raise
    except Exception as e:  # by release and by thread the library raises errors of several families
        raise _failure(e, name, folder, token) from e
    return f"{api.endpoint}/{name}"


def _failure(e: Exception, name: str, folder: Path, token: str) -> UserError | WorkError:
    again = f"; {folder} is whole: python -m mmed_jax.export --model={folder} --push={name} goes on"
    refused = {
        401: f"the hub does not know the token of {TOKEN}; make a new one (huggingface.co/settings/tokens)",
        403: f"the token of {TOKEN} may not write there; it needs write permission, and you a role in that group",
        404: f"not there, or not for the token of {TOKEN}",
        409: "another upload is changing it at this moment, or the name is taken",
    }
    status = next(filter(None, map(_status, _causes(e))), 0)
    if status in refused:
        return UserError(f"--push={name}: {refused[status]} (HTTP {status}){again}")
    text = one_line(e).replace(token, "***")[:300]
    code = f"HTTP {status}, " if status else ""
    return WorkError(f"--push={name}: could not be uploaded ({code}{text}){again}")


def _causes(e: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if e is None:
            return
        yield e
        e = e.__cause__ or e.__context__


def _status(e: BaseException) -> int:
    response: Any = getattr(e, "response", None)
    status = getattr(response, "status_code", 0)
    return status if isinstance(status, int) else 0
