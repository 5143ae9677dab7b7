"""data_gen against an endpoint that fails: every row and every cent accounted for.

    python -m scripts.reliability_requests --rows=5000 --kills=10

A server on this machine (tests/support) fails --share of its requests in fourteen ways: 429, 500, 503, cut
connections, time-outs, pages of HTML, refusals, filters, answers cut or of wrong form. --processes at once work through
--rows on one ledger and are killed --kills times. Then: every row is there, the same as without faults of the moment
and kills; nothing finished was paid again; and the server's own bill lies between what the ledger knows to be spent and
that with what may have been billed as well. Needs a checkout (the server is in tests/).
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import WorkError, run_command  # noqa: E402
from mmed_jax.llm_api.ledger.ledger import Ledger  # noqa: E402
from mmed_jax.llm_api.ledger.transactions import FINAL  # noqa: E402
from mmed_jax.llm_api.prices import price_of  # noqa: E402
from tests.support.llm_api import balanced, echo_model, inputs, lines, outcomes, settings  # noqa: E402
from tests.support.openai_server import CONTENT, Faults, OpenAIServer  # noqa: E402


def work(folder: str, url: str, rows: int, name: str) -> None:
    """One process: all rows, its outcomes in a file of its own."""
    given = settings(Path(folder), url, concurrency=48, timeout_s=1.0, window=1000)
    (Path(folder) / f"{name}.json").write_text(json.dumps(lines(outcomes(given, inputs(rows)))), encoding="utf-8")


def finished(given) -> set[str]:
    """The keys of the requests whose answer is in the ledger."""
    with Ledger(given.ledger_file) as ledger:
        return {k for (k,) in ledger.query(f"SELECT key FROM requests WHERE state IN {FINAL}")}


def disturbed(folder: Path, server: OpenAIServer, args: argparse.Namespace) -> tuple[int, int]:
    """Works until every process has ended by itself; (kills, finished requests that were billed again)."""
    context = multiprocessing.get_context("forkserver")
    draw, killed, paid = random.Random(args.seed), 0, {}
    given = settings(folder, server.base_url)
    names = [f"found{i}" for i in range(args.processes)]
    moments = sorted(draw.randrange(0, args.rows) for _ in range(args.kills))

    def start(name: str):
        process = context.Process(target=work, args=(str(folder), server.base_url, args.rows, name))
        process.start()
        return process

    running = {name: start(name) for name in names}
    while any(p.is_alive() for p in running.values()):
        if moments and sum(server.billed.values()) >= moments[0]:
            time.sleep(draw.random() * 0.1)
            name = draw.choice([n for n, p in running.items() if p.is_alive()] or names)
            if running[name].is_alive():
                running[name].kill()
                killed += 1
            moments.pop(0)
            running[name].join()
            for key in finished(given):
                paid.setdefault(key, server.billed_names[key])
            running[name] = start(name)
        time.sleep(0.002)
    failed = [p.exitcode for p in running.values() if p.exitcode]
    if failed:
        raise WorkError(f"a process ended with exit {failed[0]}")
    return killed, sum(server.billed_names[key] != times for key, times in paid.items())


def main(argv: list[str] | None = None) -> None:
    """Runs the suite and prints its table; exit 1 when anything does not add up."""
    parser = Parser(prog="python -m scripts.reliability_requests", description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.2, help="of the requests that fail")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    os.environ["OPENAI_API_KEY"] = "sk-reliability"
    price, wrong = price_of("gpt-4o-mini"), []
    faults = Faults.mixed(args.share, seed=args.seed)
    with tempfile.TemporaryDirectory(prefix="reliability_requests_") as base:
        disturbed_in, quiet_in = Path(base) / "disturbed", Path(base) / "quiet"
        disturbed_in.mkdir()
        quiet_in.mkdir()
        with OpenAIServer(echo_model, faults=faults, timeout_s=3.0) as server:
            killed, again = disturbed(disturbed_in, server, args)
            found = [json.loads(f.read_text()) for f in sorted(disturbed_in.glob("found*.json"))]
            book = balanced(settings(disturbed_in, server.base_url))
            asked, usage = sum(server.asked.values()), server.billed_usage
        # What strikes an answer stays, what strikes the moment goes.
        lasting = Faults({name: faults.rates[name] for name in CONTENT}, args.seed)
        with OpenAIServer(echo_model, faults=lasting) as server:
            expected = lines(outcomes(settings(quiet_in, server.base_url, concurrency=48), inputs(args.rows)))
    billed = price.cost(usage["prompt_tokens"], usage["completion_tokens"])
    spent, most = book.totals.spent, book.totals.spent + book.totals.uncertain
    rows = sum(book.rows.values())
    wrong += [f"process {i}: other rows than undisturbed" for i, f in enumerate(found) if f != expected]
    wrong += [f"{rows} rows in the ledger, {args.rows} asked for"] if rows != args.rows else []
    wrong += [f"{again} finished requests were billed again"] if again else []
    if not spent - 1e-9 <= billed <= most + 1e-9:
        wrong.append("the server's bill is outside what the ledger allows")
    print(
        "| rows | requests | kills | rows in the ledger | finished, billed again | ledger: spent | server's bill | "
        "ledger: spent and uncertain | wrong |\n|---|---|---|---|---|---|---|---|---|"
    )
    print(
        f"| {args.rows} | {asked} | {killed} | {rows} | {again} | ${spent:.6f} | ${billed:.6f} | ${most:.6f} | "
        f"{len(wrong)} |"
    )
    if wrong:
        raise WorkError("; ".join(wrong))


if __name__ == "__main__":
    run_command(main)
