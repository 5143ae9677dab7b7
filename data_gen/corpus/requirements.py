"""The extra `corpus`: whether it is installed, said in one line before any work is begun."""

import importlib.metadata
import importlib.util

from mmed_jax.common.errors import UserError

# Module -> distribution, of what every build imports. What one format needs, readers.reader_of says.
MODULES = {
    "datatrove": "datatrove",
    "ahocorasick_rs": "ahocorasick_rs",
    "orjson": "orjson",
    "zstandard": "zstandard",
    "pyarrow": "pyarrow",
}
# Versions of these may change what a stage gives, so they count in the names of stage folders.
VERSIONED = (
    "datatrove",
    "ahocorasick_rs",
    "jusText",
    "lxml",
    "orjson",
    "py3langid",
    "pyarrow",
    "pypdfium2",
    "trafilatura",
    "warcio",
    "zstandard",
)


def check_extra() -> None:
    """Raises UserError, one line, where a part of the extra is missing."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"corpus: {', '.join(missing)} not installed", hint='; pip install "mmed_jax[corpus]"')


def library_versions() -> dict[str, str]:
    """{distribution: version} of VERSIONED, as far as they are installed."""
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
