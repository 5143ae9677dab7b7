"""Memory and time of `prepare` over made instruction records: what a run needs before its first step.

    python -m scripts.bench_prepare --records=1000000 [--tokenizer=models/Meta-Llama-3-8B-Instruct]

Makes records of `--words` words on average (lognormal, as answers are), then the packed table of them in a process of
its own, cache and all, with the recipe stage1: a fiftieth of the questions held out, packed to `--seq_len`. Printed are
its peak memory (resident, of the system), how much of it libraries and tokenizer have, seconds of the clock and of
processors. The files go with the command; --folder names a disk that has room for ten bytes a token and three times the
records. Linux only.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # when called as a file

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import UserError, WorkError, run_command  # noqa: E402

LANGUAGES = ("en", "zh", "fr", "ru")
WORDS = {
    "en": "the patient fever dose of treatment with pain and for blood in a daily test result acute chronic renal",
    "zh": "患者 发热 剂量 治疗 疼痛 血液 检查 结果 急性 慢性 肾功能 每日 症状 医生 药物",
    "fr": "le patient fièvre dose du traitement avec douleur et pour sang un test résultat aigu chronique rénal",
    "ru": "пациент лихорадка доза лечение боль кровь анализ результат острый хронический почечный ежедневно",
}


def write_records(path: Path, count: int, words: int) -> int:
    """Writes so many records; how many bytes they are."""
    draw = random.Random(0)
    pools = {code: text.split() for code, text in WORDS.items()}
    with open(path, "w", encoding="utf-8") as f:
        for number in range(count):
            code = LANGUAGES[number % len(LANGUAGES)]
            length = max(4, min(8 * words, int(draw.lognormvariate(0, 0.7) * words / 1.28)))
            text = " ".join(draw.choices(pools[code], k=length))
            cut = len(text) // 3
            messages = [
                {"role": "user", "content": f"{number}: {text[:cut]}?"},
                {"role": "assistant", "content": text[cut:]},
            ]
            record = {"id": f"made-{code}-{number:07d}", "language": code, "messages": messages, "source": "made"}
            f.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path.stat().st_size


def measure(tokenizer: str, folder: str, seq_len: str) -> None:
    """Of the process: prepares, and prints what it took as JSON."""
    from mmed_jax.config.overrides import parse_args
    from mmed_jax.data.prepare import prepare
    from mmed_jax.data.tokenizers.tokenizer import load_tokenizer

    tok = load_tokenizer(tokenizer)
    tok("The encoder makes its tables with the first text.")
    before = peak_bytes()
    given = {"data.train": f"{folder}/records.jsonl", "data.cache_dir": f"{folder}/cache", "data.seq_len": seq_len}
    given["data.validation_fraction"] = "0.02"
    config, _ = parse_args(["--config=stage1", *(f"--config.{k}={v}" for k, v in given.items())])
    start, cpu = time.perf_counter(), time.process_time()
    report = prepare(config, tok).report
    taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    train = report["tables"]["train"]
    counts = {k: train[k] for k in ("samples", "tokens", "rows", "efficiency")}
    print(json.dumps({"before": before, "peak": peak_bytes(), **taken, **counts}))


def peak_bytes() -> int:
    """The most memory that this process has had at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m scripts.bench_prepare", description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=60, help="of a record, on average")
    parser.add_argument("--seq_len", type=int, default=2048)
    parser.add_argument("--tokenizer", default="demo", help='folder, or "demo"')
    parser.add_argument("--folder", help="where files go for as long (default: the system's)")
    args = parser.parse_args(argv)
    for name in ("records", "words"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: must be above 0")
    from scripts.make_tokenizer import OUTPUT

    tokenizer = OUTPUT if args.tokenizer == "demo" else Path(args.tokenizer).absolute()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        size = write_records(Path(folder) / "records.jsonl", args.records, args.words)
        print(f"{args.records:,} records, {size / 1e6:,.0f} MB", flush=True)
        call = f"from scripts.bench_prepare import measure; measure({str(tokenizer)!r}, {folder!r}, '{args.seq_len}')"
        environment = {"JAX_PLATFORMS": "cpu", **os.environ}
        run = subprocess.run([sys.executable, "-c", call], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            raise WorkError("the process failed; see above")
        m = json.loads(run.stdout.splitlines()[-1])
    print(f"{m['samples']:,} samples, {m['tokens']:,} tokens in {m['rows']:,} rows, {m['efficiency']:.1%} full")
    print(f"peak memory {m['peak'] / 2**20:,.0f} MiB, {m['before'] / 2**20:,.0f} of them before the first record")
    print(f"{m['seconds']:,.0f} s, {m['cpu_seconds']:,.0f} processor seconds")


if __name__ == "__main__":
    run_command(main)
