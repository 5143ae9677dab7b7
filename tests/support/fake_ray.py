"""What the executor uses of Ray, with processes of this machine in its place; `install` makes it what is imported.

calls holds the options and arguments of each task; those numbers of tasks that stand in `lost` are lost the first time.
"""

import multiprocessing
import multiprocessing.connection
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any


class RayError(Exception):
    pass


class WorkerCrashedError(RayError):
    pass


def _run(function: Any, arguments: tuple, pipe: Any) -> None:
    pipe.send(function(*arguments))


class Ref:
    def __init__(self, process: Any, result: Any) -> None:
        self.process, self.result = process, result


class FakeRay(types.ModuleType):
    """Module `ray`."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.calls: list[dict] = []
        self.lost: set[int] = set()
        self.cancelled = 0
        self.address, self.resources = "", {"CPU": 2.0, "memory": float(8 << 30)}
        self.exceptions = types.SimpleNamespace(RayError=RayError, WorkerCrashedError=WorkerCrashedError)
        self._context = multiprocessing.get_context("forkserver")

    def is_initialized(self) -> bool:
        return bool(self.address)

    def init(self, address: str, **options: Any) -> None:
        if address == "nowhere:6379":
            raise ConnectionError("Could not find any running Ray instance.")
        self.address = address

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": self.resources}]

    def remote(self, **options: Any) -> Any:
        """The decorator with options; a task is started by .remote(...)."""

        def decorate(function: Any) -> Any:
            def start(*arguments: Any) -> Ref:
                number = len(self.calls)
                self.calls.append(options | {"arguments": arguments})
                receiver, sender = self._context.Pipe(duplex=False)
                process = self._context.Process(target=_run, args=(function, arguments, sender), daemon=True)
                process.start()
                sender.close()
                if number in self.lost:
                    process.kill()
                return Ref(process, receiver)

            return types.SimpleNamespace(remote=start)

        return decorate

    def wait(self, refs: list[Ref], num_returns: int) -> tuple[list[Ref], list[Ref]]:
        sentinels = {ref.process.sentinel: ref for ref in refs}
        ready = [sentinels[s] for s in multiprocessing.connection.wait(list(sentinels))][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref) -> Any:
        ref.process.join()
        try:
            return ref.result.recv()
        except EOFError:
            raise WorkerCrashedError("The worker died unexpectedly while executing this task.") from None

    def cancel(self, ref: Ref, force: bool) -> None:
        self.cancelled += 1
        ref.process.kill()
        ref.process.join()


def install(monkeypatch: Any) -> FakeRay:
    """`import ray` gives a new FakeRay until the test ends."""
    module = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", module)
    return module
