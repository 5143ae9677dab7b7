"""A process that waits for the others says who has not come, and how long it goes on."""

import contextlib
import socket
import time

import pytest

from mmed_jax.config.defaults import base
from mmed_jax.config.overrides import parse_distributed
from mmed_jax.parallel import distributed
from mmed_jax.parallel.meeting import MeetingPoint, waiting


@pytest.fixture
def port():
    """Of a coordinator to which two processes are connected: itself and another."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        number = server.getsockname()[1]
        for _ in range(2):
            stack.enter_context(socket.create_connection(("127.0.0.1", number)))
            stack.enter_context(server.accept()[0])
        yield number


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_process_0_says_how_many_came_from_where(port, monkeypatch):
    point = MeetingPoint("127.0.0.1", port, 0, 3, "")
    start = "waiting    15 s for the other processes, for at most 285 s more: 1 of 2 have connected (from 127.0.0.1)"
    assert waiting(point, 15.2, 300) == start
    # A TPU pod tells the names of its hosts.
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "127.0.0.1,127.0.0.1,127.0.0.9")
    assert waiting(point, 15.2, 300) == f"{start}, not 127.0.0.9"


def test_another_process_says_whether_the_coordinator_is_there(port):
    text = "waiting    30 s for the other processes, for at most 270 s more"
    there = MeetingPoint("127.0.0.1", port, 1, 2, "")
    where = f"the coordinator 127.0.0.1:{port} (process 0)"
    assert waiting(there, 30, 300) == f"{text}: {where} answers, its own output says who is missing"
    gone = MeetingPoint("127.0.0.1", free_port(), 1, 2, "")
    assert waiting(gone, 30, 300).endswith(f"127.0.0.1:{gone.port} (process 0) does not answer yet")
    assert waiting(MeetingPoint("", 0, -1, -1, ""), 30, 300) == text


def test_it_is_said_again_and_again_until_all_have_come(port, capfd):
    settings = base().distributed
    settings.coordinator, settings.num_processes, settings.process_id = f"127.0.0.1:{port}", 3, 0
    with distributed._saying(settings, 60, every=0.1):
        time.sleep(0.75)
    said = capfd.readouterr().out.splitlines()
    assert 3 <= len(said) <= 7 and all(line.startswith("waiting    ") and "1 of 2" in line for line in said), said
    time.sleep(0.3)
    assert not capfd.readouterr().out


def test_where_the_others_are_is_read_from_a_command_line_that_is_wrong():
    argv = [
        "--confg=stage1",
        "--config.distributed.coordinator=host:1",
        "--config.distributed.num_processes",
        "4",
        "--config.distributed.process_id=two",
        "--config.distributed.no_such_key=1",
        "--config.optim.lrr=1",
        "--config.distributed.timeout_seconds",
    ]
    found = parse_distributed(argv).distributed
    wanted = base().distributed
    wanted.coordinator, wanted.num_processes = "host:1", 4
    assert found.to_dict() == wanted.to_dict()
    assert parse_distributed([]).to_dict() == base().to_dict()
