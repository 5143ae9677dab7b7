"""Work whose product lies in a folder: done once where hosts share the folder, once a host where they do not."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from uuid import uuid4

from mmed_jax.common.errors import ReportedError
from mmed_jax.common.jsonl import loads
from mmed_jax.common.places import Place, is_bucket
from mmed_jax.parallel.coordinator import LONGEST_SECONDS, Coordinator, to_text
from mmed_jax.parallel.host_comparison import agree, failure

T = TypeVar("T")


def sees_mark(coordinator: Coordinator, folder: Place, name: str) -> bool:
    """Whether this process finds in `folder` what process 0 writes there now: whether they share it.

    Every process calls it. The file has a name that nobody has looked for before, so that no cache of a network file
    system has an answer ready; a folder that process 0 cannot write is not shared. A place in a bucket is one for all
    that name it.
    """
    if coordinator.index:
        mark = coordinator.hear(f"{name} mark", 0)
        named = is_bucket(mark) or is_bucket(folder)
        seen = mark == str(folder) if named else bool(mark) and (folder / mark).exists()
        coordinator.state(f"{name} seen", "yes" if seen else "no")
        return seen
    if is_bucket(folder):
        coordinator.state(f"{name} mark", str(folder))
        return True
    mark = f".shared.{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).write_text(coordinator.host, encoding="utf-8")
    except OSError:
        mark = ""
    coordinator.state(f"{name} mark", mark)
    coordinator.state(f"{name} seen", "yes")  # it counts itself among those that have looked
    try:
        coordinator.gather(f"{name} seen")
    finally:
        if mark:
            with contextlib.suppress(OSError):
                (folder / mark).unlink()
    return True


def makers(coordinator: Coordinator, folder: Place, name: str) -> dict[int, int]:
    """{process: the process that makes for it what belongs into `folder`}; every process calls it.

    Process 0 makes it for all that share its folder; on another host the first process of that host does.
    """
    seen = sees_mark(coordinator, folder, name)
    coordinator.state(f"{name} storage", to_text([seen, coordinator.host]))
    storages = {i: loads(text, list) for i, text in coordinator.gather(f"{name} storage").items()}
    first: dict[str, int] = {}
    for process, (shared, host) in storages.items():
        if not shared:
            first.setdefault(host, process)
    return {process: 0 if shared else first[host] for process, (shared, host) in storages.items()}


def make_once_a_storage(
    coordinator: Coordinator | None,
    folder: Place,
    work: Callable[[bool], T],
    facts_of: Callable[[T], Mapping[str, Any]],
    *,
    name: str,
    say: Callable[[str], object] = print,
) -> T:
    """Runs `work(is_writer)` on every process, on those that make first, and compares what came of it.

    A host that does not see the folder of process 0 makes its own, at the same time; nobody waits for something that
    cannot come. When one fails, all do, with its error.

    Args:
      coordinator: None in a single process.
      folder: where the product goes.
      work: makes what is missing, or waits for it when not `is_writer`.
      facts_of: what must be equal on all hosts.
      name: of the product, for messages; once a run.

    Returns:
      What `work` returned on this process.

    Raises:
      HostsDiffer: the products are not equal. Whatever `work` raised somewhere.
    """
    if coordinator is None:
        return work(True)
    plan = makers(coordinator, folder, name)
    if coordinator.index == 0 and (others := set(plan.values()) - {0}):
        who = coordinator.describe(others)
        say(f"{name}: {folder} is not shared by all hosts, so {who} will make it there as well")
    maker, index = plan[coordinator.index], coordinator.index
    if maker != index and coordinator.hear(f"{name} made", maker, LONGEST_SECONDS, say) != "yes":
        agree(coordinator, name, {}, seconds=LONGEST_SECONDS, say=say)  # raises the error of the one that failed
    try:
        made = work(maker == index or maker != 0)
    except BaseException as e:
        coordinator.state(f"{name} made", "no")
        if index == 0:
            with contextlib.suppress(ReportedError):
                agree(coordinator, name, failure(e))
        else:
            coordinator.state(name, to_text(failure(e)))
        raise
    coordinator.state(f"{name} made", "yes")
    agree(coordinator, name, facts_of(made), seconds=LONGEST_SECONDS, say=say)
    return made
