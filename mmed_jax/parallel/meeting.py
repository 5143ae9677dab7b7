"""Where the processes of a run meet: said before it is waited for, and who came when not all did."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmed_jax.common.errors import UserError

_CONNECTED = "01"  # a state of proc_net_tcp(5)


@dataclass(frozen=True)
class MeetingPoint:
    """The coordinator's host and port ("" and 0 when jax finds them), and this process among how many (-1: unknown)."""

    host: str
    port: int
    process: int
    count: int
    source: str


def find(distributed: Any, ask: bool = False) -> MeetingPoint:
    """Where the processes meet, from config.distributed, else as far as the environment tells without waiting.

    Args:
      ask: a TPU pod's metadata are asked as well.

    Raises:
      UserError: an address without a port.
    """
    if distributed.coordinator:
        host, port = _parse(distributed.coordinator)
        return MeetingPoint(
            host, port, distributed.process_id, distributed.num_processes, "config.distributed.coordinator"
        )
    return _of_scheduler(ask) or MeetingPoint("", 0, -1, -1, "")


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"config.distributed.coordinator={address}: write HOST:PORT")
    return host, int(port)


def _of_scheduler(ask: bool) -> MeetingPoint | None:
    """As jax reads Slurm's or Open MPI's environment; None where jax asks others, or is not as expected."""
    try:
        from jax._src.clusters import ClusterEnv

        for env in ClusterEnv._cluster_types:
            if env.opt_in_only_method or not env.is_env_present():
                continue
            kind = next((k for k in ("slurm", "ompi", *(["tpu"] if ask else [])) if k in env.__name__.lower()), "")
            if not kind:
                return None
            port = os.environ.get("JAX_COORDINATOR_PORT")
            host, _, number = env.get_coordinator_address(5, port).rpartition(":")
            source = {"slurm": "Slurm", "ompi": "Open MPI", "tpu": "the TPU pod"}[kind]
            return MeetingPoint(host.strip("[]"), int(number), env.get_process_id(), env.get_process_count(), source)
    except Exception:
        return None
    return None


def announce(place: MeetingPoint, seconds: float) -> str:
    """The line before connecting: who waits for whom, and how long."""
    own = f"process {place.process} of {place.count} on {socket.gethostname()}" if place.count > 0 else _here()
    where = f"coordinator {place.host}:{place.port}" if place.host else "a coordinator that jax finds"
    return f"joining    {own}, {where}, for at most {seconds:g} s"


def _here() -> str:
    return f"a process on {socket.gethostname()}"


def check_address(place: MeetingPoint) -> None:
    """Raises UserError at once when the coordinator's name is unknown on this host, instead of waiting for it."""
    if not place.host:
        return
    try:
        socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except socket.gaierror as e:
        if e.errno == socket.EAI_AGAIN:  # the name server does not answer now; jax tries again until its time is up
            return
        raise UserError(
            f"{place.source}: the coordinator's host {place.host} is not known on {socket.gethostname()} "
            f"({e.strerror}); name one by its address with --config.distributed.coordinator=ADDRESS:{place.port}"
        ) from e


def waiting(place: MeetingPoint, so_far: float, seconds: float) -> str:
    """A line of a long wait: who has come and who has not, as far as that is known, and how long it goes on."""
    text = f"waiting    {so_far:,.0f} s for the other processes, for at most {max(0.0, seconds - so_far):,.0f} s more"
    if not place.host:
        return text
    if place.process != 0:
        does = (
            "answers, its own output says who is missing" if answers(place.host, place.port) else "does not answer yet"
        )
        return f"{text}: the coordinator {place.host}:{place.port} (process 0) {does}"
    came = connected(place.port)
    missing = _absent(place.count, came)
    # This process is connected to itself as well.
    number = f"{max(0, len(came) - 1)} of {place.count - 1} have connected{_from(came)}"
    return f"{text}: {number}" + (
        f", not {', '.join(missing[:16])}{', ...' if len(missing) > 16 else ''}" if missing else ""
    )


def _absent(count: int, came: list[str]) -> list[str]:
    """Hosts of a TPU pod from which nobody is connected; [] where their names are not known."""
    names = expected_hosts(count, os.environ)
    absent = []
    for name in names[1:]:
        try:
            addresses = {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
        except OSError:
            addresses = set()
        if not addresses & set(came):
            absent.append(name)
    return absent


def expected_hosts(count: int, environment: Mapping[str, str]) -> list[str]:
    """The hosts of `count` processes, as far as the environment of a TPU pod tells; [] where it does not."""
    names = [name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    return names if len(names) == count else []


def nobody(place: MeetingPoint, seconds: float) -> str:
    """Why joining has failed: the coordinator is not there, or some have not come; and who has."""
    start = "start the same command on every host, or raise --config.distributed.timeout_seconds"
    who = f"{socket.gethostname()}: the other processes did not answer within {seconds:g} s"
    if not place.host:
        return f"{who}: {start}"
    if place.process == 0:
        came = connected(place.port)
        # This process is connected to itself as well.
        return f"{who}: {max(0, len(came) - 1)} of {place.count - 1} have connected{_from(came)}: {start}"
    if not answers(place.host, place.port):
        return f"{who}: nothing answers at the coordinator {place.host}:{place.port} (process 0): {start}"
    return f"{who}: the coordinator {place.host}:{place.port} does, its own message says who is missing: {start}"


def _from(addresses: list[str]) -> str:
    listed = list(dict.fromkeys(addresses))
    return f" (from {', '.join(listed[:16])}{', ...' if len(listed) > 16 else ''})" if listed else ""


def answers(host: str, port: int) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def connected(port: int) -> list[str]:
    """Addresses of those that are connected to `port` of this host, one for each connection; [] without /proc."""
    addresses = []
    for name in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            _, local, remote, state = row.split()[:4]
            if state == _CONNECTED and int(local.rpartition(":")[2], 16) == port:
                addresses.append(_address(remote.rpartition(":")[0]))
    return sorted(addresses)


def _address(text: str) -> str:
    """An address of proc_net_tcp(5): 32-bit words in the machine's order."""
    words = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    if len(words) == 16 and words.startswith(b"\0" * 10 + b"\xff\xff"):
        words = words[12:]
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words)
