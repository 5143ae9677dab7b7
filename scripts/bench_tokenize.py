"""Speed and memory of one worker of `corpus tokenize`: made documents, one unit in a process of its own.

    python -m scripts.bench_tokenize --mb=20 [--tokenizer=models/Meta-Llama-3-8B] [--seq_len=8192]

Documents have 2,000 characters at the median, some hundreds of thousands, in four languages; the words are those of
scripts/bench_prepare.py. Printed are processor seconds with what they come to (reading, tokenizing, packing, writing
the shards), and the peak memory, of which the libraries and the tokenizer have a part. Linux only.
"""

import json
import os
import random
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
from scripts.bench_prepare import LANGUAGES, WORDS, peak_bytes  # noqa: E402


def write_documents(path: Path, size: int) -> int:
    """Writes documents of so many bytes together; how many they are."""
    draw, count = random.Random(0), 0
    pools = {code: text.split() for code, text in WORDS.items()}
    with open(path, "w", encoding="utf-8") as f:
        while f.tell() < size:
            code = LANGUAGES[count % len(LANGUAGES)]
            text = " ".join(draw.choices(pools[code], k=max(20, int(draw.lognormvariate(0, 1.5) * 300))))
            f.write(json.dumps({"id": f"d{count}", "language": code, "text": text}, ensure_ascii=False) + "\n")
            count += 1
    return count


def measure(tokenizer: str, folder: str, seq_len: int) -> None:
    """Of the process: makes the shards of the file as one unit, and prints what it took as JSON."""
    from data_gen.corpus.tokenize_stage import tokenize_unit
    from data_gen.corpus.units import Piece, Unit
    from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, tokenizer_hash

    path = Path(folder) / "documents.jsonl"
    size = path.stat().st_size
    part = Unit("made", (Piece(path.name, "jsonl", "", 0, size, size),)).as_dict()
    settings = {"seq_len": seq_len, "overlap": 0.0, "attend_across": False, "language": "", "finished": False}
    tok = load_tokenizer(tokenizer)
    tok("The encoder makes its tables with the first text.")
    settings |= {"tokenizer": tokenizer_hash(tok), "limits": {}}
    context = {"roots": {"made": folder}, "tokenizer": tokenizer}
    before, start = peak_bytes(), time.process_time()
    shards = tokenize_unit(part, settings, context, Path(folder)).counts["shards"].values()
    taken = {"cpu_seconds": time.process_time() - start, "before": before, "peak": peak_bytes(), "size": size}
    totals = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "rows", "size")}
    print(json.dumps({**taken, **totals, "size": size, "shards": totals["size"]}))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m scripts.bench_tokenize", description=__doc__.partition("\n")[0])
    parser.add_argument("--mb", type=float, default=20.0, help="megabytes of documents")
    parser.add_argument("--seq_len", type=int, default=8192)
    parser.add_argument("--tokenizer", default="demo", help='folder, or "demo"')
    args = parser.parse_args(argv)
    if args.mb <= 0:
        raise UserError(f"--mb={args.mb:g}: must be above 0")
    from scripts.make_tokenizer import OUTPUT

    tokenizer = OUTPUT if args.tokenizer == "demo" else Path(args.tokenizer).absolute()
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder) / "documents.jsonl", int(args.mb * 1e6))
        call = f"from scripts.bench_tokenize import measure; measure({str(tokenizer)!r}, {folder!r}, {args.seq_len})"
        run = subprocess.run([sys.executable, "-c", call], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
        if run.returncode:
            raise WorkError("the process failed; see above")
        m = json.loads(run.stdout.splitlines()[-1])
    full, seconds = m["tokens"] / (m["rows"] * args.seq_len), m["cpu_seconds"]
    print(f"{m['documents']:,} documents, {m['size'] / 1e6:,.0f} MB")
    print(f"{m['tokens']:,} tokens in {m['rows']:,} rows, {full:.1%} full")
    print(f"{seconds:,.1f} processor seconds: {m['size'] / seconds / 1e6:.2f} MB a second")
    print(f"{m['tokens'] / seconds:,.0f} tokens a second of a processor")
    print(f"peak memory {m['peak'] / 2**20:,.0f} MiB, {m['before'] / 2**20:,.0f} of them before the first document")


if __name__ == "__main__":
    run_command(main)
