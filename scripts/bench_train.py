"""Training speed beside other systems: same architecture, records, tokens and machine, taking turns in one run.

    python -m scripts.bench_train --against=transformers,nnx
    python -m scripts.bench_train --against=transformers,nnx --records='runs/real/records/stage1/*.jsonl'
    python -m scripts.bench_train --against=peft --records='runs/real/records/stage1/*.jsonl'

Each system lives in its own process, and they work by turns (A B A B), so that a busy machine is busy for all. Float32,
AdamW, clipping, batches of --batch_size rows or samples.

  dense  full rows of random tokens, every target trained: tokens/s of the step itself
  real   the records: packed rows here, one sample a row padded to the longest of the batch in transformers (as the
         collators of Trainer do), to a multiple of 128 in nnx (each length is compiled once). What counts is supervised
         tokens/s: trained targets of real text. All systems see the same samples, tokenized and masked alike.

All weights are trained, but by peft: an adapter of --rank on every linear module, beside ours of the same
(mmed_jax-lora) and beside our full fine-tuning, which shows what an adapter saves.

Prints a table in Markdown; --output=FILE writes all measurements as JSON. Without --tokenizer a byte-level BPE of
--vocab_size ids is trained on the given records; for the embedded records it is the embedded tokenizer.
"""

import argparse
import datetime
import glob
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # when called as a file

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import UserError, WorkError, nearest, run_command  # noqa: E402
from mmed_jax.common.output_files import check_file, check_folder  # noqa: E402

OURS, OURS_LORA = "mmed_jax", "mmed_jax-lora"
# The systems of --against, each with that of ours which does the same work.
PEERS = {"transformers": OURS, "nnx": OURS, "peft": OURS_LORA}
EMBEDDED = (ROOT / "data_gen/handcrafted/instructions.jsonl", ROOT / "data_gen/handcrafted/mcq.jsonl")
PACKAGES = ("jax", "flax", "optax", "torch", "transformers", "peft")
# Packages a system needs that the project does not.
NEEDS = {"transformers": ("torch",), "peft": ("torch", "peft")}
DATA = ("dense", "real")
SIZES = {
    "batch_size": 4,
    "seq_len": 512,
    "vocab_size": 32768,
    "hidden_size": 512,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 4,
    "intermediate_size": 1792,
}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--against", default="transformers", help=f"systems, a,b of {', '.join(PEERS)}")
    parser.add_argument("--records", default="", help="record files, a,b,c or patterns (default: the embedded ones)")
    parser.add_argument("--tokenizer", default="", help='folder, or "demo" (default: trained on --records)')
    parser.add_argument("--data", default="dense,real", help="what to measure (default: dense,real)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each system on each data (default: 5)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of one turn (default: 15)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters (default: 16)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args(argv)
    args.against = [name for name in args.against.split(",") if name]
    args.data = [name for name in args.data.split(",") if name]
    for given, known, flag in ((args.against, PEERS, "--against"), (args.data, DATA, "--data")):
        for name in given:
            if name not in known:
                raise UserError(f"{flag}: '{name}' is unknown{nearest(name, known)}")
    if args.rounds < 1 or not args.data:
        raise UserError("--rounds and --data: at least one each")
    if not 0 < args.seconds < float("inf"):
        raise UserError(f"--seconds={args.seconds}: must be a number greater than 0")
    for name in (*SIZES, "rank"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: must be at least 1")
    if args.hidden_size % args.num_heads or args.num_heads % args.num_kv_heads:
        raise UserError("--num_heads must divide --hidden_size, and --num_kv_heads must divide --num_heads")
    return args


def hf_model(args: argparse.Namespace) -> dict[str, Any]:
    """The architecture under Hugging Face's names, which all systems read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": args.vocab_size,
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": args.num_heads,
        "num_key_value_heads": args.num_kv_heads,
        "head_dim": args.hidden_size // args.num_heads,
        "max_position_embeddings": args.seq_len,
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def read_all(given: str) -> list[dict]:
    """Records of the files that --records names (patterns allowed), the embedded ones for ""."""
    from mmed_jax.data.records.reading import read_records

    paths: list[str] = [str(p) for p in EMBEDDED] if not given else []
    for part in filter(None, given.split(",")):
        found = sorted(glob.glob(part))
        if not found:
            raise UserError(f"--records: no file '{part}'")
        paths += found
    records = [record for path in paths for record in read_records(path)]
    if not records:
        raise UserError(f"--records={given}: no record in {', '.join(paths)}")
    return records


def checked_output(path: Path | None) -> Path | None:
    """The JSON file of --output, before anything is measured for it; its folder is made."""
    if path is None:
        return None
    check_folder(path.parent, "--output")
    return check_file(path, "--output")


def tokenizer_for(args: argparse.Namespace, records: list[dict], folder: Path):
    """The tokenizer that --tokenizer names, or one of `vocab_size` ids trained on the records, written to `folder`."""
    from mmed_jax.data.tokenizers.tokenizer import check_vocab, load_tokenizer, save_tokenizer
    from scripts.make_tokenizer import OUTPUT, train, training_lines

    if args.tokenizer in ("", "demo") and (args.tokenizer or not args.records):
        tok = load_tokenizer(OUTPUT)
    elif args.tokenizer:
        tok = load_tokenizer(args.tokenizer)
    else:
        print(f"training a tokenizer of {args.vocab_size:,} ids on {len(records):,} records", flush=True)
        save_tokenizer(train(training_lines(records), args.vocab_size), folder)
        tok = load_tokenizer(folder)
    check_vocab(tok, args.vocab_size)
    return tok


def prepare(args: argparse.Namespace, folder: Path) -> tuple[dict, dict]:
    """Tokenizes the records once, for all. Returns (specification for the systems, facts for the report)."""
    from mmed_jax.data.pack import pack
    from mmed_jax.data.packed_table import TABLE, table_info, table_report, write_rows
    from mmed_jax.data.tokenize import RenderSettings, build_samples

    records = read_all(args.records)
    tok = tokenizer_for(args, records, folder / "tokenizer")
    # A sample of n ids takes n - 1 slots here and n positions there: the same samples fit both.
    samples = build_samples(tok, records, RenderSettings(seq_len=args.seq_len - 1), progress="tokenizing")
    if len(samples) < args.batch_size:
        raise UserError(f"--records: {len(samples)} samples are too few for a batch of {args.batch_size}")
    rows = pack(samples.slots, args.seq_len, seed=0)
    report = table_report(samples, rows, args.seq_len)
    part = {**write_rows(folder, "train", samples, rows), "report": report}
    table = {**table_info(args.seq_len, "instruction", {}, {"train": part}), "key": "bench"}
    (folder / TABLE).write_text(json.dumps(table), encoding="utf-8")
    np.savez(folder / "samples.npz", ids=samples.ids, trained=samples.trained, offsets=samples.offsets)
    spec = {
        "model": hf_model(args),
        "batch": args.batch_size,
        "seq_len": args.seq_len,
        "rank": args.rank,
        "data": args.data,
        "table": str(folder),
        "samples": str(folder / "samples.npz"),
    }
    keys = ("samples", "tokens", "supervised", "rows", "efficiency")
    languages = {name: counts["samples"] for name, counts in report["languages"].items()}
    return spec, {**{k: report[k] for k in keys}, "languages": languages, "tokenizer_ids": len(tok)}


class Worker:
    """A system in a process of its own (scripts/bench_systems.py)."""

    def __init__(self, name: str, spec: Path):
        self.name = name
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self._log = tempfile.TemporaryFile("w+")
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench_systems", name, str(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )
        self.start = {**self._answer(), "seconds_to_ready": time.perf_counter() - start}

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self._log.seek(0)
            last = (self._log.read().strip() or "no message").splitlines()[-1]
            raise WorkError(f"{self.name} ended with exit code {self.process.returncode}: {last}")
        return json.loads(line)

    def turn(self, data: str, seconds: float) -> dict:
        self.process.stdin.write(json.dumps({"data": data, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def measure(args: argparse.Namespace, spec: Path) -> dict[str, dict]:
    """{system: {"start": ..., "dense": [a turn, ...], "real": [...]}}; turns alternate between the systems."""
    workers: list[Worker] = []
    results: dict[str, dict] = {}
    try:
        lora = [OURS_LORA] if OURS_LORA in map(PEERS.get, args.against) else []
        for name in (OURS, *lora, *args.against):
            workers.append(Worker(name, spec))
            results[name] = {"start": workers[-1].start, **{data: [] for data in args.data}}
            print(f"{name}: ready for its second step after {workers[-1].start['seconds_to_ready']:.1f} s", flush=True)
        for number in range(args.rounds):
            for data in args.data:
                for worker in workers:
                    results[worker.name][data].append(worker.turn(data, args.seconds))
                shown = (f"{w.name} {rate(results[w.name][data][-1]):,.0f}" for w in workers)
                print(f"round {number + 1} {data}: {', '.join(shown)} supervised tokens/s", flush=True)
    finally:
        for worker in workers:
            worker.close()
    return results


def rate(turn: dict, what: str = "supervised") -> float:
    return turn[what] / turn["seconds"]


def summary(results: dict[str, dict], data: list[str]) -> dict[str, dict]:
    """Per system the medians over turns, and of ours that does the same the ratios to it, turn by turn."""
    out = {}
    for name, result in results.items():
        start = result["start"]
        row: dict[str, Any] = {"setup_seconds": start["setup_seconds"], "trained": start.get("trained")}
        for kind in data:
            turns = result[kind]
            rates = [rate(t, "slots" if kind == "dense" else "supervised") for t in turns]
            step = statistics.median(t["seconds"] / t["steps"] for t in turns)
            ours = [rate(t, "slots" if kind == "dense" else "supervised") for t in results[PEERS.get(name, OURS)][kind]]
            ratios = [a / b for a, b in zip(ours, rates)]
            row[kind] = {
                "tokens_per_second": statistics.median(rates),
                "best": max(rates),
                "worst": min(rates),
                "cpu_seconds_per_1000": 1000
                * sum(t["cpu_seconds"] for t in turns)
                / sum(t["slots" if kind == "dense" else "supervised"] for t in turns),
                "ours_over_it": statistics.median(ratios),
                "ratios": ratios,
                # What the first step takes above the others: compilation, and the first use of everything.
                "first_step_extra_seconds": max(0.0, start["first_step_seconds"][kind] - step),
                "trained_share": sum(t["supervised"] for t in turns) / sum(t["slots"] for t in turns),
                "filled": sum(t["tokens"] for t in turns) / sum(t["slots"] for t in turns),
            }
        row["peak_mib"] = max(t["peak_mib"] for kind in data for t in result[kind])
        out[name] = row
    return out


def spread(ratios: list[float]) -> str:
    """The median of ratios, with the worst and the best."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def markdown(rows: dict[str, dict], data: list[str]) -> str:
    """The table for people: one line a system."""
    head, lines = ["system"], []
    for kind in data:
        what = "dense tokens/s" if kind == "dense" else "supervised tokens/s"
        head += [f"{what} (worst to best)", "ours / it", f"CPU s / 1000 {kind}"]
    head += ["slots filled"] * ("real" in data) + ["peak MiB", "start-up s", "first step extra s"]
    for name, row in rows.items():
        cells = [name]
        for kind in data:
            r = row[kind]
            cells += [
                f"{r['tokens_per_second']:,.0f} ({r['worst']:,.0f} to {r['best']:,.0f})",
                "" if name in (OURS, OURS_LORA) else spread(r["ratios"]),
                f"{r['cpu_seconds_per_1000']:.2f}",
            ]
        cells += [f"{row['real']['filled']:.1%}"] if "real" in data else []
        extra = max(row[kind]["first_step_extra_seconds"] for kind in data)
        cells += [f"{row['peak_mib']:,.0f}", f"{row['setup_seconds']:.1f}", f"{extra:.1f}"]
        lines.append(cells)
    table = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def machine(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """What the numbers depend on: processor, cores, versions, date."""
    names = {p: importlib.metadata.version(p) for p in packages if installed(p)}
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = models[0] if models else cpu
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_at_start": load,
        "python": platform.python_version(),
        "versions": names,
        "date": datetime.date.today().isoformat(),
    }


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    for name in args.against:
        for package in NEEDS.get(name, ()):
            if not installed(package):
                raise UserError(f"--against={name}: {package} is not installed (`scripts/setup.sh test` brings it)")
    args.output = checked_output(args.output)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="bench_train_") as folder:
        spec, data = prepare(args, Path(folder))
        languages = ", ".join(f"{k} {v:,}" for k, v in data["languages"].items())
        print(
            f"{data['samples']:,} samples ({languages}), {data['tokens']:,} tokens, {data['supervised']:,} trained, "
            f"packed in {data['rows']:,} rows, {data['efficiency']:.1%} full",
            flush=True,
        )
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        results = measure(args, path)
    rows = summary(results, args.data)
    print(f"\n{facts['cpu']}, {facts['cores']} cores, {facts['date']}, {facts['versions']}\n")
    print(markdown(rows, args.data))
    if args.output:
        settings = {k: v for k, v in vars(args).items() if k != "output"}
        whole = {"machine": facts, "settings": settings, "data": data, "summary": rows, "turns": results}
        args.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
