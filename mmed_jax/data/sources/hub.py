"""The same sets from huggingface.co/datasets, by the same names: `--input=hub` or `--input=hub:REPO_ID[@REVISION]`.

Tables go through `datasets.load_dataset` (parquet and JSON repositories, parquet conversions; a repository's own code
is never run); sets published as a zip are fetched as files. Column names are those of the repositories' cards.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.data.records.reading import SPLIT_NAMES
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.source import Row, Source

if TYPE_CHECKING:
    import datasets


def parse_input(source: Source, value: str) -> tuple[str, str | None]:
    """hub[:REPO_ID[@REVISION]] as (repo, revision). Raises UserError when no repository is known or named."""
    repo, _, revision = value.removeprefix("hub").removeprefix(":").partition("@")
    repo = repo or source.hub.repo
    if not repo:
        raise UserError(
            f"--input=hub: no hub copy of {source.name} is known; name one as hub:REPO_ID, or {by_hand(source)}"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise UserError(f"--input={value}: '{repo}' is no hub name; write hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    return repo, revision or (source.hub.revision if repo == source.hub.repo else None)


class Unreachable(WorkError):
    """A set can't be fetched from the hub."""


def by_hand(source: Source, give: str = "give --input=FILE_OR_FOLDER") -> str:
    """How to do without the hub. `give`: how the command at hand is given the download."""
    return f"download it from {source.url} and {give} ({source.expects})"


def hub_rows(
    source: Source,
    value: str,
    languages: tuple[str, ...] | None,
    config: str | None,
    options: dict,
    download: Download,
) -> Iterator[Row]:
    """Rows of the hub copy. `config` overrides the known ones; `options` go to rows/unfold (answer_base),
    `download` says how files are read.

    Raises UserError for a name that can't be, WorkError in one line when it can't be fetched (no network, gated, gone).
    """
    import huggingface_hub

    # Without a network it retries for half a minute, a warning each; one error line at the end says it all.
    huggingface_hub.logging.set_verbosity_error()
    repo, revision = parse_input(source, value)
    known = repo == source.hub.repo
    if known and source.hub.files and not config:
        return _from_files(source, repo, revision, options, download)
    configs = (config,) if config else source.hub.configs if known else (None,)
    wanted = [c for c in configs if not (languages and c in LANGUAGES and c not in languages)]
    return source.unfold(_from_tables(source, repo, revision, wanted), **options)


def _from_files(source: Source, repo: str, revision: str | None, options: dict, download: Download) -> Iterator[Row]:
    import huggingface_hub

    for name in source.hub.files:
        try:
            path = huggingface_hub.hf_hub_download(repo, name, revision=revision, repo_type="dataset")
        except Exception as e:  # the hub raises a dozen kinds, network and permission among them
            raise _unreachable(source, f"{repo}/{name}", e) from None
        yield from source.rows(dataclasses.replace(download, path=Path(path)), **options)


def _from_tables(source: Source, repo: str, revision: str | None, configs: list[str | None]) -> Iterator[Row]:
    import datasets

    for config in configs:
        place = repo + (f" [{config}]" if config else "")
        try:
            if source.hub.subdirs and repo == source.hub.repo:
                loaded = datasets.load_dataset(repo, data_dir=config, revision=revision)
            else:
                loaded = datasets.load_dataset(repo, config, revision=revision)
        except ValueError as e:  # what an unknown config raises, with the known ones in its text
            raise UserError(f"hub:{place}: {one_line(e)}") from None
        except Exception as e:
            raise _unreachable(source, place, e) from None
        for split, table in loaded.items():
            name = SPLIT_NAMES.get(split, split)
            if name in loaded:
                name = split  # MMLU has both dev and validation
            if repo == source.hub.repo and not source.hub.splits:
                name = ""
            for number, raw in enumerate(_plain(table), 1):
                if config in LANGUAGES:
                    raw.setdefault("language", config)
                yield Row(raw, f"hub:{place} {split}:{number}", f"{repo}/{config or 'default'}", name, number)


def _plain(table: "datasets.Dataset") -> Iterator[dict]:
    """Rows as stored: images stay bytes (nothing here needs them) and class labels stay numbers."""
    for batch in table.with_format("arrow").iter(1000):
        yield from batch.to_pylist()


def _unreachable(source: Source, place: str, error: Exception) -> Unreachable:
    problem = f"can't be fetched ({type(error).__name__}: {one_line(error)[:200]})"
    return Unreachable(problem, place=f"hub:{place}", hint=f"; {by_hand(source)}")
