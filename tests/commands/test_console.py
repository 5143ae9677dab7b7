"""Outputs that cannot be written: what lies in files is never lost, a product never in silence."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mmed_jax.common import loading

REPO = Path(__file__).resolve().parents[2]
# Everything that writes beside a long command, and what it is for: a file.
LONG = """
    import logging, os, pathlib, signal, sys, time, warnings
    handler = logging.StreamHandler()  # made before a command begins, as by libraries at their import
    from tqdm import tqdm
    from mmed_jax.common import console
    from mmed_jax.common.errors import run_command
    console.PATIENCE_SECONDS = 0.1
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def main():
        console.outlive()
        print("ready", flush=True)
        go_on = pathlib.Path("go_on")
        while not go_on.exists():
            time.sleep(0.01)
        logging.getLogger().addHandler(handler)
        signal.signal(signal.SIGUSR1, lambda *_: console.write_now("a signal"))
        for step in range(3):
            print("Dosis: 5 µg, 剂量" * 2000, flush=True)
            print("Dosis: 5 µg, 剂量" * 2000, file=sys.stderr, flush=True)
            warnings.warn(f"step {step}")
            logging.warning("a line of a library")
            list(tqdm(range(2)))
            os.kill(os.getpid(), signal.SIGUSR1)
            sys.stdout.write("not flushed")
        opened = open("result", "w")
        assert opened.fileno() > 2, opened.fileno()
        opened.write(str(sorted(lost["output"] for lost in console.take_lost())) + str(console.take_lost()))

    run_command(main)
"""


def start(folder: Path, code: str, stdout: object, stderr: object, **env: str) -> subprocess.Popen:
    """Python of its own, with its outputs as a shell would set them up."""
    env = os.environ | {"PYTHONPATH": str(REPO)} | env
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=stdout, stderr=stderr, cwd=folder, env=env
    )


def pipe_without_reader():
    """As after `| head`: it has read one line and ended."""
    reader, writer = os.pipe()

    def lose():
        assert os.read(reader, 100).startswith(b"ready")
        os.close(reader)

    return writer, lose


def full_pipe_that_does_not_block():
    """As some terminals and node's child processes make them."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    return writer, lambda: reader


def pipe_that_nobody_reads():
    """As `| less`, left on its first page."""
    reader, writer = os.pipe()
    return writer, lambda: reader


def full_disk():
    return os.open("/dev/full", os.O_WRONLY), lambda: None


def vanished_terminal():
    ours, theirs = pty.openpty()

    def lose():
        os.read(ours, 100)
        os.close(ours)

    return theirs, lose


OUTPUTS = [pipe_without_reader, full_pipe_that_does_not_block, pipe_that_nobody_reads, full_disk, vanished_terminal]


@pytest.mark.parametrize("make", OUTPUTS, ids=lambda f: f.__name__)
def test_a_long_command_outlives_its_outputs(tmp_path, make):
    output, lose = make()
    process = start(tmp_path, LONG, output, output)
    os.close(output)
    lose()
    (tmp_path / "go_on").touch()
    assert process.wait(100) == 0
    # Both outputs are named, once.
    assert (tmp_path / "result").read_text() == "['stderr', 'stdout'][]"


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_long_command_started_without_outputs(tmp_path, closed):
    (tmp_path / "go_on").touch()
    python = f'exec "$0" -c "$1" {" ".join(f"{fd}>&-" for fd in closed)}'
    command = ["sh", "-c", python, sys.executable, textwrap.dedent(LONG)]
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO)}, timeout=100, **nowhere)
    assert done.returncode == 0
    names = [name for fd, name in ((2, "stderr"), (1, "stdout")) if fd in closed]
    assert (tmp_path / "result").read_text() == f"{names}[]"


PRODUCT = """
    import sys
    from mmed_jax.common.errors import run_command

    def main():
        print("a message", file=sys.stderr)
        for number in range({lines}):
            print("answer", number, "x" * 100)

    run_command(main)
"""


@pytest.mark.parametrize("lines", [1, 5000])  # written at the end, and before it
def test_a_product_is_not_lost_in_silence(tmp_path, lines):
    code = PRODUCT.format(lines=lines)
    with open("/dev/full", "wb") as full:
        process = start(tmp_path, code, full, subprocess.PIPE)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 1
        assert err == b"a message\nerror: stdout cannot be written (No space left on device)\n"
    reader, writer = os.pipe()
    process = start(tmp_path, code, writer, subprocess.PIPE)
    os.close(writer), os.close(reader)
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (1, b"a message\n")  # `| head` is no failure worth a line


def test_messages_that_nobody_hears_do_not_cost_the_product(tmp_path):
    with open("/dev/full", "wb") as full:
        process = start(tmp_path, PRODUCT.format(lines=5000), subprocess.PIPE, full)
        os.set_blocking(process.stdout.fileno(), True)
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and out.count(b"\n") == 5000


def test_a_product_waits_for_its_reader(tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = start(tmp_path, PRODUCT.format(lines=5000), writer, subprocess.PIPE)
    os.close(writer)
    time.sleep(1)
    with open(reader, "rb") as read:
        assert read.read().count(b"\n") == 5000
    assert process.wait(100) == 0 and process.stderr.read() == b"a message\n"
    process.stderr.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gb18030", "shift_jis", "utf-8"])
def test_text_that_the_output_cannot_show_is_escaped(tmp_path, encoding):
    code = """
        import sys
        from mmed_jax.common.errors import UserError, run_command

        def main():
            print("剂量 5 µg, доза, \\udcff")
            raise UserError("剂量.jsonl: 용량")

        run_command(main)
    """
    process = start(tmp_path, code, subprocess.PIPE, subprocess.PIPE, PYTHONIOENCODING=encoding)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    text = "剂量 5 µg, доза, \udcff\n".encode(encoding, "backslashreplace")
    assert out == text and err == "error: 剂量.jsonl: 용량\n".encode(encoding, "backslashreplace")


HALF_MADE = """
    import pathlib, signal, time
    from mmed_jax.common.errors import run_command
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup, or in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def main():
        half = pathlib.Path("half")
        try:
            half.touch()
            time.sleep(100)
        finally:
            half.unlink()

    run_command(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_and_leaves_nothing_half_made(tmp_path, number):
    process = start(tmp_path, HALF_MADE, subprocess.DEVNULL, subprocess.PIPE)
    while not (tmp_path / "half").exists():
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    assert err.decode() == f"stopped by {name}; run the same command again to continue\n"
    assert process.returncode == 128 + number and not (tmp_path / "half").exists()


# Stands for a library that takes an interrupt for a failed import.
SLOW_LIBRARY = """
    import pathlib, time
    pathlib.Path("loading").touch()
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        raise ImportError("broken off") from None
"""


@pytest.mark.parametrize(
    "library, command",
    [("numpy", ["mmed_jax.train"]), ("numpy", ["data_gen"]), ("ml_collections", ["data_gen", "corpus"])],
)
def test_ctrl_c_while_modules_are_loaded_ends_a_command_without_a_word(tmp_path, library, command):
    (tmp_path / f"{library}.py").write_text(textwrap.dedent(SLOW_LIBRARY))
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPO}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Ctrl-C is ignored where the tests run in the background.
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **pipes,
    )
    while not (tmp_path / "loading").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=100) == (b"", b"") and process.returncode == -signal.SIGINT


OWN_PROGRAM = """
    import pathlib, time
    try:
        pathlib.Path("waits").touch()
        time.sleep(100)
    except KeyboardInterrupt:
        print("heard")
"""


@pytest.mark.parametrize("command", [["-m", "own.tool", "x"], ["-mown.tool"], ["-c", "import own.tool"]])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_program_that_imports_a_package_of_ours_keeps_its_ctrl_c(tmp_path, command, ignored):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/__init__.py").write_text("import mmed_jax, data_gen")
    (tmp_path / "own/tool.py").write_text(textwrap.dedent(OWN_PROGRAM))
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPO}"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )
    while not (tmp_path / "waits").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    if ignored:  # as in the background of a shell
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.kill()
    assert process.communicate(timeout=100)[0] == (b"" if ignored else b"heard\n")


def test_the_module_that_python_looks_for(monkeypatch):
    def wanted(*words):
        position = next((i for i, word in enumerate(words) if word.startswith("-") and "m" in word), None)
        rest = list(words[position + (2 if words[position] == "-m" else 1) :])
        monkeypatch.setattr(sys, "orig_argv", ["python", *words])
        monkeypatch.setattr(sys, "argv", ["-m", *rest])
        return loading.wanted_module()

    assert wanted("-m", "mmed_jax.train", "-m", "x") == "mmed_jax.train"
    assert wanted("-X", "dev", "-Bmmmed_jax.train") == "mmed_jax.train"
    monkeypatch.setattr(sys, "argv", ["/there/train.py"])
    assert loading.wanted_module() == ""
