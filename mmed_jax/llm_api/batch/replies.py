"""What an endpoint says of a file or a batch. The client hands on whatever shape it came in, so none is relied on."""

from itertools import islice
from typing import Any

from mmed_jax.common.errors import WorkError, one_line
from mmed_jax.llm_api import client as api
from mmed_jax.llm_api.completions import token_count
from mmed_jax.llm_api.failure_words import message_of
from mmed_jax.llm_api.ledger.transactions import storable

_STATES = {
    "canceled": "cancelled",
    "succeeded": "completed",
    "success": "completed",
    "finished": "completed",
    "ended": "completed",
    "done": "completed",
    "error": "failed",
    "errored": "failed",
    "timeout": "expired",
    "timed_out": "expired",
    "timeout_exceeded": "expired",
}
_FILES = ("output_file_id", "error_file_id")


def state_of(found: Any) -> str:
    """The state of a batch as the endpoint shows it. Raises WorkError for what is no batch."""
    state = getattr(found, "status", None)
    if not isinstance(state, str):
        raise WorkError(f"the endpoint's answer on a batch is none ({_shown(found)}); the same command goes on")
    return _STATES.get(state.lower(), state.lower())


def id_of(found: Any) -> str:
    """The id of a file or batch that was made. Raises WorkError when the endpoint's answer has none."""
    name = getattr(found, "id", None)
    if isinstance(name, str) and name and name == storable(name):
        return name
    raise WorkError(
        f"the endpoint's answer to a step of the Batch API has no id ({_shown(found)}); the same command goes on"
    )


def count_of(found: Any, name: str) -> int | None:
    """A number of the batch's request_counts; None where it is not told."""
    counts = _plain(getattr(found, "request_counts", None))
    # No batch is empty: a total of none means that they are not filled in.
    if not isinstance(counts, dict) or token_count(counts.get("total")) == 0:
        return None
    return token_count(counts.get(name))


def files_of(found: Any) -> tuple[list[str], list[str]]:
    """The ids of the files of results and of errors."""
    output, errors = (_ids(_plain(getattr(found, name, None))) for name in _FILES)
    return output, errors


def errors_of(found: Any) -> list[str]:
    """Why a batch failed, an error each: "code: message", as far as that is said."""
    errors = _plain(getattr(found, "errors", None) or getattr(found, "error", None))
    if isinstance(errors, dict) and errors.get("data") is not None:
        errors = errors["data"]
    said = map(_error, errors if isinstance(errors, list) else [errors])
    return [text for text in said if text]


def made_from(client: Any, file_id: str) -> Any | None:
    """The batch that was made from a file and has not failed, among the newest; None where there is none.

    Raises WorkError when the endpoint's list cannot be read.
    """
    try:
        recent = list(islice(client.batches.list(limit=100), 500))
    except (AttributeError, LookupError, TypeError) as e:  # the client's own reading of a list of another shape
        said = api.redact(one_line(e))[:80]
        raise WorkError(f"the endpoint's list of batches cannot be read ({said}); the same command goes on") from None
    made = (b for b in recent if getattr(b, "input_file_id", None) == file_id)
    return next((b for b in made if state_of(b) != "failed"), None)


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` with dicts in place of the client's objects."""
    if depth > 5:
        return None
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value[:100]]
    if hasattr(value, "model_extra"):
        value = {**vars(value), **(value.model_extra or {})}
    return {str(k): _plain(v, depth + 1) for k, v in value.items()} if isinstance(value, dict) else value


def _ids(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    ids = [item.get("id") if isinstance(item, dict) else item for item in items]
    # One that no address can hold names no file.
    return [name for name in ids if isinstance(name, str) and name and name == storable(name)]


def _error(item: Any) -> str:
    code, message = (item.get("code"), message_of(item)) if isinstance(item, dict) else ("", item)
    return ": ".join(str(text) for text in (code, message) if isinstance(text, str | int) and text)


def _shown(found: Any) -> str:
    return api.redact(one_line(Exception(str(found))))[:80]
