"""What `train` compares between hosts: before the first device is touched, and again when the data is there."""

import functools
import time
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.checkpoints.run_view import view_run_dir
from mmed_jax.common.hashes import json_hash
from mmed_jax.common.places import Place, parse_place
from mmed_jax.data.prepare import prepare
from mmed_jax.data.prepared import Prepared
from mmed_jax.parallel.coordinator import LONGEST_SECONDS, Coordinator
from mmed_jax.parallel.host_comparison import agree
from mmed_jax.parallel.host_facts import host_facts
from mmed_jax.parallel.shared_work import make_once_a_storage, sees_mark

# A table that another host has just written may be seen late on a network file system.
_SEEN_SECONDS = 120


def check_run(
    config: ConfigDict,
    run_dir: Place | None,
    flags: dict[str, Any],
    inputs: dict[str, Any],
    coordinator: Coordinator,
    say: Callable = print,
) -> None:
    """Every process is about to do the same with the same files in the same folder. Called by all of them at one
    moment, before devices are touched.

    Args:
      run_dir: None when nothing is written.
      flags: of the command line, those that decide what is done.
      inputs: what this process reads (host_inputs.input_facts).

    Raises:
      HostsDiffer, WorkError: as host_comparison.agree.
    """
    now = time.time()
    more = {**{f"--{name}": value for name, value in flags.items()}, **inputs}
    folders = {"config.data.cache_dir": parse_place(config.data.cache_dir)}
    if run_dir is not None:
        more |= view_run_dir(run_dir, shared=sees_mark(coordinator, run_dir, "run_dir"))
        folders["config.run_dir"] = run_dir
    agree(coordinator, "run", host_facts(config, more, folders, now), say=say)


def prepare_on_hosts(config: ConfigDict, tok: Any, coordinator: Coordinator | None, say: Callable = print) -> Prepared:
    """The packed tables of the run on every host, made once where hosts share the cache, and equal everywhere.

    Args:
      coordinator: None in a single process.

    Raises:
      HostsDiffer: hosts have other rows. Whatever `prepare` raised on any of them.
    """

    def work(is_writer: bool) -> Prepared:
        return prepare(config, tok, is_writer=is_writer, timeout_s=_SEEN_SECONDS, say=say)

    folder = parse_place(config.data.cache_dir)
    return make_once_a_storage(coordinator, folder, work, data_facts, name="the packed table", say=say)


def data_facts(prepared: Prepared) -> dict[str, str]:
    """What must be equal of the data: rows and fingerprint of every split; the records that questions and prompts of
    evaluations are taken from."""
    tables = {"train": prepared.train, **prepared.validation}
    facts = {f"data ({split})": f"{len(table):,} rows, {table.fingerprint[:16]}" for split, table in tables.items()}
    held_out = prepared.held_out
    return {**facts, "data (held-out records)": f"{len(held_out):,} records, {json_hash(held_out, 16)}"}


def compiled_together(function: Any, coordinator: Coordinator | None, name: str) -> Callable[..., Any]:
    """`function`, which is jitted, and runs for the first time when every host has compiled it.

    A collective's first meeting has a limit of its own (30 s of gloo, on CPUs), and of those who wait in it nobody
    says for whom. jax keeps what was compiled for the call that follows.

    Args:
      coordinator: None in a single process. name: for messages; once a run.
    """
    if coordinator is None:
        return function
    is_compiled = False

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal is_compiled
        if not is_compiled:
            function.lower(*arguments, **keywords).compile()
            agree(coordinator, f"{name} compiled", {}, seconds=LONGEST_SECONDS)
            is_compiled = True
        return function(*arguments, **keywords)

    return call
