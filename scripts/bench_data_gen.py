"""Scale of data_gen's engine: requests a second, resuming a ledger, memory. Needs a checkout (the server is in tests/).

    python -m scripts.bench_data_gen                          200,000 rows, 20,000 of them over HTTP
    python -m scripts.bench_data_gen --requests=200000        all of them over HTTP (a quarter of an hour)
    python -m scripts.bench_data_gen --method=rationale       with that method's prompts, parsing and gates

Each step is a process of its own, so that its peak memory is its own:
  send     --requests rows against the local server (another process), which answers at once
  fill     the ledger is filled up to --rows; the model is called without HTTP between
  resume   all --rows again: looked up, parsed, judged, yielded; nothing is sent
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # when called as a file

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import UserError, WorkError, run_command  # noqa: E402
from mmed_jax.training.telemetry import host_memory_peak_bytes  # noqa: E402

STEPS = ("send", "fill", "resume")
_WORDS = "a patient of years presents with fever cough pain in the chest and is treated with mg of drug daily".split()
_TEXTS = [" ".join(_WORDS[(i * 7 + j * j) % len(_WORDS)] for j in range(180)) for i in range(len(_WORDS))]


def rows_of(count: int, method: str) -> Iterator[dict]:
    """Rows of about 1,000 characters of text, all different; multiple-choice records for the method rationale."""
    for i in range(count):
        text = f"Case {i}. {_TEXTS[i % len(_TEXTS)]}"
        if method == "echo":
            yield {"id": f"row-{i}", "text": text}
            continue
        options = {x: f"{_WORDS[(i + k) % 20]} {_WORDS[(i * 3 + k) % 20]} {i + k} mg" for k, x in enumerate("ABCD")}
        yield {
            "id": f"row-{i}",
            "language": "en",
            "question": text + "?",
            "options": options,
            "answer_idx": "ABCD"[i % 4],
            "source": "bench",
            "license": "CC0-1.0",
            "provenance": {},
        }


def _method(name: str) -> tuple:
    """(method, gates, model)."""
    if name == "echo":
        from tests.support.llm_api import EchoMethod, echo_model, language_gate

        return EchoMethod(), [language_gate], echo_model
    from data_gen.methods import default_gates, make_method
    from tests.support.fake_model import FakeModel

    return make_method(name), default_gates(name), FakeModel()


def step(args: argparse.Namespace) -> dict:
    """One step in this process: {"rows", "seconds", "cpu_seconds", "mib"}."""
    from mmed_jax.llm_api.runner import RunSettings, run

    method, gates, model = _method(args.method)
    if args.step == "fill":
        _without_http(model)
    count = args.requests if args.step == "send" else args.rows
    settings = RunSettings(
        ledger=args.ledger,
        model="gpt-4o-mini",
        base_url=args.base_url,
        concurrency=args.concurrency,
        total=count,
    )
    began, cpu = time.perf_counter(), time.process_time()
    accepted = total = 0
    for outcome in run(method, rows_of(count, args.method), settings, gates):
        total += 1
        accepted += outcome.state == "accepted"
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if total != count or accepted < 0.95 * count:
        raise WorkError(f"{args.step}: {total} outcomes, {accepted} accepted, of {count} rows")
    return {"rows": count, "seconds": seconds, "cpu_seconds": cpu, "mib": host_memory_peak_bytes() / 2**20}


def _without_http(model) -> None:
    from mmed_jax.llm_api import client, sender
    from tests.support.openai_server import OpenAIServer

    server = OpenAIServer(model)

    async def ask(_, request, price):
        return client.Reply(client.read_completion(server.complete(client.body_of(request)), price))

    sender.api.ask = ask


def _serve(method: str) -> None:
    from tests.support.openai_server import OpenAIServer

    with OpenAIServer(_method(method)[2]) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


def _run_step(name: str, args: argparse.Namespace, ledger: Path, base_url: str) -> dict:
    command = [
        sys.executable,
        "-m",
        "scripts.bench_data_gen",
        f"--step={name}",
        f"--ledger={ledger}",
        f"--base_url={base_url}",
        f"--rows={args.rows}",
        f"--requests={args.requests}",
        f"--concurrency={args.concurrency}",
        f"--method={args.method}",
    ]
    environment = {**os.environ, "OPENAI_API_KEY": "sk-bench"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise WorkError(f"the step {name} failed")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    """The benchmark. Raises WorkError when a step fails."""
    parser = Parser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--method", choices=("echo", "rationale"), default="echo")
    parser.add_argument("--step", choices=(*STEPS, "serve"), help=argparse.SUPPRESS)
    parser.add_argument("--ledger", help=argparse.SUPPRESS)
    parser.add_argument("--base_url", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not 0 < args.requests <= args.rows:
        raise UserError(f"--requests={args.requests}: must be from 1 to --rows={args.rows}")
    if args.concurrency < 1:
        raise UserError(f"--concurrency={args.concurrency}: must be at least 1")
    if args.step == "serve":
        _serve(args.method)
    elif args.step:
        print(json.dumps(step(args)))
    else:
        print(report(args))


def report(args: argparse.Namespace) -> str:
    """Runs the steps and returns the table."""
    serve = [sys.executable, "-m", "scripts.bench_data_gen", "--step=serve", f"--method={args.method}"]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.sqlite"
        with subprocess.Popen(serve, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
            try:
                base_url = server.stdout.readline().strip()
                found = {name: _run_step(name, args, ledger, base_url) for name in STEPS}
            finally:
                server.kill()
        size = sum(p.stat().st_size for p in Path(folder).iterdir()) / 2**20
    load = f"load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {load}",
        f"method {args.method}, concurrency {args.concurrency}",
        "step          rows   seconds    rows/s  CPU ms/row  peak MiB",
    ]
    for name, r in found.items():
        lines.append(
            f"{name:<8} {r['rows']:>9,} {r['seconds']:>9.1f} {r['rows'] / r['seconds']:>9.0f}"
            f" {r['cpu_seconds'] / r['rows'] * 1000:>11.2f} {r['mib']:>9.0f}"
        )
    return "\n".join([*lines, f"ledger: {size:,.0f} MiB, {size * 2**20 / args.rows:,.0f} bytes a row"])


if __name__ == "__main__":
    run_command(main)
