"""A finished folder goes up to the Hugging Face hub: checked before anything is made, each failure one line.

The token comes from the environment alone (HF_TOKEN) and is in no message. huggingface_hub uploads; what the hub holds
already is not sent again, so that an upload that broke off is continued by the same call.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common.errors import ReportedError, UserError, WorkError, one_line

TOKEN = "HF_TOKEN"
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")


def check_name(flag: str, name: str) -> None:
    """Refuses what is no name on the hub; flag: what it was given to. Raises UserError."""
    parts = name.split("/")
    if len(parts) != 2 or not all(_NAME.fullmatch(p) and "--" not in p and ".." not in p for p in parts):
        raise UserError(
            f"{flag}={name}: is no name on the hub; give ORG/NAME, each of letters, digits, -, _ and ., which "
            "begins and ends with a letter or digit"
        )
    if len(name) > 96 or name.endswith(".git"):
        raise UserError(f"{flag}={name}: the hub takes names of 96 characters at most that do not end in .git")


def check_access(flag: str) -> None:
    """Refuses to begin where the hub may not be asked, or without a token. Raises UserError."""
    if is_offline():
        raise UserError(f"{flag}: the hub is not asked in offline mode; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
    token = os.environ.get(TOKEN, "").strip()
    if token and not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"{flag}: {TOKEN} holds spaces, line breaks or other signs that are in no token; set it anew")
    if not token:
        raise UserError(
            f"{flag}: no token; set the environment variable {TOKEN} to one that may write "
            "(huggingface.co/settings/tokens)"
        )


def is_offline() -> bool:
    """Whether the environment forbids huggingface_hub to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def upload(
    flag: str,
    folder: Path,
    name: str,
    *,
    kind: str = "model",
    private: bool = False,
    stale: Sequence[str] = (),
    only: Sequence[str] | None = None,
    instead: Mapping[str, bytes] | None = None,
    again: str,
) -> str:
    """Uploads a folder into the repository `name`, which is made where there is none.

    Args:
      flag: what the name was given to. folder: whole. name: ORG/NAME. kind: "model" or "dataset".
      private: of a new repository; an existing one is not changed.
      stale: patterns of files of an earlier upload that go where the folder does not have them.
      only: names of the files that go up; None = all. instead: {name: what goes up in place of a file of the folder}.
      again: the command that goes on with an upload that broke off.

    Returns:
      The address of its page.

    Raises:
      UserError: the token or the name is refused; --private and the repository is public.
      WorkError: the hub does not answer, or not to the end.
    """
    from huggingface_hub import HfApi

    token = os.environ.get(TOKEN, "").strip()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True, repo_type=kind)
        if private and not api.repo_info(name, repo_type=kind).private:
            raise UserError(
                f"--private: {name} is there and public; make it private on its page, or leave the flag out"
            )
        with _replaced(folder, instead or {}) as place:
            api.upload_folder(
                repo_id=name,
                repo_type=kind,
                folder_path=place,
                commit_message="Written by mmed_jax",
                delete_patterns=list(stale),
                allow_patterns=None if only is None else [_literal(file) for file in only],
            )
    except ReportedError:
        raise
    except Exception as e:  # by release and by thread the library raises errors of several families
        raise _failure(e, f"{flag}={name}", f"; {folder} is whole: {again} goes on", token) from e
    return f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"


@contextlib.contextmanager
def _replaced(folder: Path, instead: Mapping[str, bytes]) -> Iterator[Path]:
    """The folder, or links to its files where some are replaced."""
    if not instead:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mmed_jax-push-") as staged:
        place = Path(staged)
        for file in folder.iterdir():
            if file.name not in instead:
                (place / file.name).symlink_to(file.resolve())
        for name, data in instead.items():
            (place / name).write_bytes(data)
        yield place


def _literal(name: str) -> str:
    """A file's name as a pattern that fits it alone (fnmatch)."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _failure(e: Exception, start: str, again: str, token: str) -> UserError | WorkError:
    refused = {
        401: f"the hub does not know the token of {TOKEN}; make a new one (huggingface.co/settings/tokens)",
        403: f"the token of {TOKEN} may not write there; it needs write permission, and you a role in that group",
        404: f"not there, or not for the token of {TOKEN}",
        409: "another upload is changing it at this moment, or the name is taken",
    }
    status = next(filter(None, map(_status, _causes(e))), 0)
    if status in refused:
        return UserError(f"{start}: {refused[status]} (HTTP {status}){again}")
    # An address of storage is signed in its query: who has it may write there.
    text = re.sub(r"(https?://[^\s?]*)\?[^\s'\")]+", r"\1?***", one_line(e).replace(token, "***"))[:300]
    code = f"HTTP {status}, " if status else ""
    return WorkError(f"{start}: could not be uploaded ({code}{text}){again}")


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
