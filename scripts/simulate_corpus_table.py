"""Start-up, memory and reading speed of a table as large as a corpus: 3.1 million rows of 8,192 ids, or 122 million.

    python -m scripts.simulate_corpus_table                         25.5 billion tokens (MMedC): a minute or two
    python -m scripts.simulate_corpus_table --rows=122000000        a trillion

What is made: one shard of --shard_rows rows and made ids (documents of 300 to 8,192 tokens, ids by Zipf's law), and a
table of that many rows whose other shards are hard links to it, in 7 languages of 3 sources. So everything that goes
by the number of rows, shards and groups is real: table.json, sizes of all files, opening, places of rows, the schedule
and the permutations. What is not: the disk. All shards lie in the page cache as one file; the measurement "cold" drops
that file from the cache before each of its reads, and so gives the time of a disk that has nothing cached.
Each measurement is a process of its own; rows come through BatchStream, as train takes them: from the beginning of a
run, and from step 14,000.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mmed_jax.common.errors import run_command
from mmed_jax.common.output_files import write_json
from mmed_jax.common.paths import ASSETS
from mmed_jax.config.overrides import parse_args
from mmed_jax.data.packed_table import TABLE, make_part, table_info, write_shard
from mmed_jax.data.prepare import prepare
from mmed_jax.data.samples import Samples
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, tokenizer_hash

VOCABULARY, SOURCES = 128_256, ("web", "textbooks", "websites")
# Of the languages in MMedC, 10^9 tokens (mmed_jax/assets/published/mmedc_tokens.csv), Korean being ours.
TOKENS = {"en": 10.56, "zh": 4.74, "ja": 2.05, "ko": 0.5, "fr": 2.10, "es": 4.35, "ru": 1.69}


def made_samples(rows: int, seq_len: int, seed: int = 0) -> tuple[Samples, list[list[int]]]:
    """Documents that fill `rows` rows, and which stand in each."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    members: list[list[int]] = []
    for _ in range(rows):
        free, row = seq_len, list[int]()
        while free:
            slots = min(free, int(rng.integers(300, seq_len)))
            slots = free if free - slots < 300 else slots
            row.append(len(lengths))
            lengths.append(slots + 1)
            free -= slots
        members.append(row)
    ids = np.minimum(rng.zipf(1.2, sum(lengths)), VOCABULARY - 1).astype(np.int32)
    n = len(lengths)
    samples = Samples(
        ids=ids,
        trained=None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        record=np.arange(n),
        language=np.ones(n, np.uint8),
        names=[f"{i:032x}" for i in range(n)],
        sources=["web"] * n,
        kinds=["document"] * n,
        text_bytes=np.array(lengths) * 4,
    )
    return samples, members


def make_table(folder: Path, rows: int, shard_rows: int, seq_len: int, tokenizer: str) -> int:
    """Writes the table; returns the number of its shards. Every group has at least one."""
    samples, members = made_samples(shard_rows, seq_len)
    first = folder / "shard.array_record"
    shard = write_shard(first, samples, members)
    total = max(1, round(rows / shard_rows))
    groups = []
    for code in TOKENS:
        for source, share in zip(SOURCES, (0.75, 0.2, 0.05)):
            count = max(1, round(total * TOKENS[code] / sum(TOKENS.values()) * share))
            paths = [f"train/{code}/{source}/{i:05d}.array_record" for i in range(count)]
            (folder / paths[0]).parent.mkdir(parents=True)
            for path in paths:
                os.link(first, folder / path)
            groups.append((f"{code}/{source}", code, source, [{"path": path, **shard} for path in paths]))
    part = make_part(groups)
    sums = {k: part["rows"] // shard_rows * shard[k] for k in ("tokens", "supervised")}
    counts = {"rows": part["rows"], "samples": part["rows"], **sums, "efficiency": 1.0, "shortened": 0}
    report = {**counts, "left_out": {}, "languages": {}, "sources": {}, "kinds": {}, "lengths": {}}
    info = table_info(seq_len, "document", {"tokenizer": tokenizer}, {"train": {**part, "report": report}})
    write_json(folder / TABLE, {**info, "key": "simulated"})
    return len(part["shards"])


def memory_mib() -> tuple[float, float]:
    """(resident memory now, its peak) of this process, MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    now, peak = (int(lines[k].split()[0]) / 1024 for k in ("VmRSS", "VmHWM"))
    return now, peak


def measure(folder: Path, rows: int, step: int, cold: bool) -> dict[str, float]:
    """Opens the table, reads `rows` rows from `step` on as a run of 512 rows a step would; times and memory."""
    from mmed_jax.data.loader import BatchStream

    tok = load_tokenizer(ASSETS / "demo")
    seq_len = json.loads((folder / TABLE).read_text())["seq_len"]
    argv = ["--config=pretrain", f"--config.data.train={folder}", f"--config.data.seq_len={seq_len}"]
    argv += ["--config.epochs=0", "--config.steps=15000", "--config.batch_size=512", "--config.data.temperature=2"]
    config, _ = parse_args([*argv, "--config.data.max_repeats=1000"])
    import grain  # noqa: F401  (its import is no part of opening)

    before, _ = memory_mib()
    began = time.perf_counter()
    prepared = prepare(config, tok, say=lambda _: None)
    out = {"open_s": time.perf_counter() - began, "table_rows": len(prepared.train)}
    out["open_mib"] = memory_mib()[0] - before
    local = 32  # rows of a step that one of 16 hosts reads
    stream = BatchStream(prepared.train, 512, 0, step, local_rows=range(local), mixture=prepared.mixture)
    began = time.perf_counter()
    for number in range(step, step + 20):
        stream.row_ids(number)
    out["row_ids_ms"] = (time.perf_counter() - began) / 20 * 1000
    if cold:
        out |= read_cold(prepared.train, stream, rows)
    else:
        began, cpu = time.perf_counter(), time.process_time()
        batches = iter(stream)
        for _ in range(max(1, rows // local)):
            next(batches)
        took = time.perf_counter() - began
        read = max(1, rows // local) * local
        out |= {"rows_s": read / took, "cpu_ms_row": (time.process_time() - cpu) / read * 1000}
    now, peak = memory_mib()
    return {**out, "read_mib": now - before, "peak_mib": peak - before}


def read_cold(table, stream, rows: int) -> dict[str, float]:
    """Row after row, the file that all shards are dropped from the page cache before each."""
    descriptor = os.open(table.shards[0].path, os.O_RDONLY)
    os.fsync(descriptor)
    took = 0.0
    order = stream.mixture.rows(np.arange(rows))
    for row in order.tolist():
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        table.batch([row])
        took += time.perf_counter() - began
    os.close(descriptor)
    return {"cold_ms_row": took / rows * 1000}


def main(argv: list[str] | None = None) -> None:
    """Makes the table, measures in processes, prints and removes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_100_000)
    parser.add_argument("--shard_rows", type=int, default=3072, help="a unit of 100 MB of text gives about so many")
    parser.add_argument("--seq_len", type=int, default=8192)
    parser.add_argument("--read", type=int, default=6400, help="rows to read")
    parser.add_argument("--step", type=int, default=0, help="where the run begins")
    parser.add_argument("--folder", default="", help="where the table is made (default: a temporary folder)")
    parser.add_argument("--one", action="store_true", help="only the first measurement, in this process")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help="rows one by one from a disk that has nothing cached")
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(Path(args.measure), args.read, args.step, args.cold)))
        return
    folder = Path(tempfile.mkdtemp(dir=args.folder or None, prefix="table-"))
    try:
        began = time.perf_counter()
        tokenizer = tokenizer_hash(load_tokenizer(ASSETS / "demo"))
        shards = make_table(folder, args.rows, args.shard_rows, args.seq_len, tokenizer)
        took, size = time.perf_counter() - began, (folder / "shard.array_record").stat().st_size
        print(
            f"made: {shards:,} shards of {args.shard_rows:,} rows and {size / 1e6:,.1f} MB in {took:.0f} s", flush=True
        )
        print(f"as files of their own: {shards * size / 1e9:,.0f} GB", flush=True)
        if args.one:
            print(json.dumps(measure(folder, args.read, args.step, args.cold)))
            return
        for step, cold in ((args.step, False), (args.step + 14_000, False), (args.step, True)):
            command = [sys.executable, "-m", "scripts.simulate_corpus_table", f"--measure={folder}", f"--step={step}"]
            command += [f"--read={200 if cold else args.read}", *(["--cold"] if cold else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            shown = {k: round(v, 2) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}
            print(f"from step {step:,}{', cold' if cold else ''}: {json.dumps(shown)}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run_command(main)
