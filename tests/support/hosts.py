"""Several "hosts" in one process: threads with a connection each to a real coordinator."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

from mmed_jax.parallel.coordinator import Coordinator


class Hosts:
    """Connections of `number` processes to one coordination service; every `run` has message names of its own."""

    def __init__(self, number: int, clients: list[Any]):
        self.number, self._clients, self._runs = number, clients, count()

    def run(
        self, work: Callable[[Coordinator], Any], seconds: float = 20, only: tuple[int, ...] | None = None
    ) -> list[Any]:
        """What `work` gives or raises on every host (those in `only`), by index."""
        run = next(self._runs)
        taking_part = range(self.number) if only is None else only

        def one(index: int) -> Any:
            client = _Renamed(self._clients[index], f"run{run}")
            try:
                return work(Coordinator(client, index, self.number, seconds, host=f"host-{'abcdef'[index]}"))
            except Exception as e:
                return e

        with ThreadPoolExecutor(self.number) as pool:
            return list(pool.map(one, taking_part))


class _Renamed:
    """A connection whose keys and barriers are those of one run."""

    def __init__(self, client: Any, prefix: str):
        self._client, self._prefix = client, prefix

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda key, *args, **keys: method(f"{self._prefix}/{key}", *args, **keys)


@contextlib.contextmanager
def hosts(number: int) -> Iterator[Hosts]:
    """A coordination service of jax on a free port, joined by `number` clients of this process."""
    from jax._src.lib import _jax

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    service = _jax.get_distributed_runtime_service(address, number, heartbeat_timeout=100)
    clients = [
        _jax.get_distributed_runtime_client(address, i, init_timeout=60, shutdown_timeout=10) for i in range(number)
    ]
    with ThreadPoolExecutor(number) as pool:
        list(pool.map(lambda c: c.connect(), clients))
        try:
            yield Hosts(number, clients)
        finally:
            list(pool.map(lambda c: c.shutdown(), clients))
            service.shutdown()
