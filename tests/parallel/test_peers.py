"""A process of a run is killed: the others say which in one line, without an abort."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
WAITING = """
    import os, sys, time
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # as train does
    from mmed_jax.parallel import peers
    from mmed_jax.config.recipes import load_config
    from mmed_jax.common.errors import run_command

    def main():
        config = load_config("stage1")
        config.distributed.coordinator = sys.argv[1]
        config.distributed.num_processes = 3
        config.distributed.process_id = int(sys.argv[2])
        peers.hush(config)
        from mmed_jax.parallel import distributed
        distributed.HEARTBEAT_SECONDS, peers.INTERVAL_SECONDS = 10, 0.4
        distributed.initialize(config)
        print("ready", flush=True)
        time.sleep(200)

    run_command(main)
"""


@pytest.mark.multidevice
@pytest.mark.parametrize("killed", [0, 2])
def test_the_others_say_in_one_line_who_is_gone(killed):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    command = [sys.executable, "-c", textwrap.dedent(WAITING), address]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(i)], env=env, **pipes) for i in range(3)]
    try:
        for process in processes:
            joining = process.stdout.readline()
            assert joining.startswith("joining    process ") and f"coordinator {address}, for at most" in joining
            assert process.stdout.readline() == "ready\n", process.communicate()
        time.sleep(3)  # until they have heard of each other
        processes.pop(killed).kill()
        for process in processes:
            _, err = process.communicate(timeout=150)
            assert process.returncode == 1, err
            assert err.startswith("error: process ") and err.count("\n") == 1, err
            assert f"process {killed} on {socket.gethostname()} " in err, err
            assert err.endswith("start all of them again to continue from the newest checkpoint\n")
    finally:
        for process in processes:
            process.kill()
            process.communicate()
