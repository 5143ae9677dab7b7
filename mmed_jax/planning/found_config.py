"""Writes a setting that a search found as a config file that `train --config=FILE.py` takes."""

import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError
from mmed_jax.common.output_files import check_file, write_text
from mmed_jax.config.recipes import load_config, recipe_files
from mmed_jax.config.values import MAPPINGS, flatten
from mmed_jax.parallel.chips import GIB
from mmed_jax.planning.plan_result import PlanResult

# Files that begin so are ours and may be replaced.
MARK = '"""Found by mmed_jax.plan --search'


def check_output(output: str, recipe: str) -> None:
    """Refuses a place where no config file can be written, before anything is searched.

    Args:
      recipe: the --config value that the file will load.

    Raises:
      UserError: not a .py file, no such folder, a folder, a file that `recipe` reads, or a file that no search wrote.
    """
    path = Path(output)
    if path.suffix != ".py":
        raise UserError(f"--output={output}: must end with .py, for example {path.stem or 'found'}.py")
    file = check_file(output, "--output")
    if file in recipe_files(recipe):
        raise UserError(f"--output={output}: is read by --config={recipe} and would load itself; name another")
    if file.exists() and not file.read_text(errors="replace").startswith(MARK):
        raise UserError(f"--output={output}: there is a file that no search wrote; name another")


def differences(config: ConfigDict, base: ConfigDict) -> dict[str, Any]:
    """{key: value} of what is set otherwise than in `base`."""
    old = flatten(base)
    return {key: value for key, value in flatten(config).items() if value != old[key]}


def write_override(output: str, recipe: str, config: ConfigDict, mesh: dict[str, int], result: PlanResult) -> None:
    """Writes the file: `recipe` (a --config value) with everything that `config` has otherwise, atomically.

    The mesh axis `data` is written as it was planned: over several slices it is not the recipe's.
    """
    changes = differences(config, load_config(recipe))
    if config.mesh.data not in (-1, mesh["data"]):
        changes["mesh.data"] = mesh["data"]
    named = recipe.partition(":")[0]
    # A recipe that is a file is found wherever the run is started.
    stem = str(Path(named).absolute()) if named.endswith(".py") or "/" in named else named
    versions = ", ".join(f"{p} {_version(p)}" for p in ("jax", "libtpu"))
    r = result
    lines = [
        f"{MARK}: {recipe} on {r.topology['text']}.",
        "",
        f"{r.needed_bytes / GIB:.2f} of {r.capacity_bytes / GIB:.1f} GiB a {r.unit} ({r.method}); estimated step "
        f"{r.schedule_s * 1e3:,.0f} ms ({r.low_s * 1e3:,.0f} to {r.high_s * 1e3:,.0f}), MFU "
        f"{r.mfu(r.schedule_s):.0%}, {r.tokens_per_second_chip(r.schedule_s):,.0f} tokens/s a chip",
        f"with mesh {' '.join(f'{a}={n}' for a, n in mesh.items())}. {datetime.date.today()}, {versions}.",
        '"""',
        "",
        "from ml_collections import ConfigDict",
        "",
        "from mmed_jax.config import load_config",
        "",
        "",
        "def get_config() -> ConfigDict:",
        f'    """{recipe}, set for {r.topology["name"]}."""',
        f"    c = load_config({stem + recipe[len(named) :]!r})",
        "    c.unlock()",
        *(f"    c.{key} = {_literal(key, value)}" for key, value in sorted(changes.items())),
        "    return c",
    ]
    write_text(output, "\n".join(lines) + "\n")


def _literal(key: str, value: Any) -> str:
    return f"ConfigDict({value!r}, allow_dotted_keys=True)" if key.split(".")[-1] in MAPPINGS else repr(value)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
