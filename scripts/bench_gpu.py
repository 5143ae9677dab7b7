"""An 8B model trained on one GPU, in full and by LoRA, with random weights: tokens/s, MFU, memory, where the time goes.

    scripts/bench_gpu.sh [--output=DIR]          makes the environment and calls this
    python -m scripts.bench_gpu --smoke          tries the script itself without a GPU, on a tiny model

Measured on the card, one after another, each in a process of its own: the rate of bfloat16 products; training steps of
the program that `train` runs, packed rows of 2048 and 8192 tokens and one document of 8192; an adapter (rank 16, every
linear module) on frozen weights in bfloat16 (lora) and in nf4 (qlora); the same work by transformers and by peft, for
nf4 with bitsandbytes, when torch with CUDA is installed. MFU is causal model FLOPs (training/flops.py) over the
measured rate, and over the data sheet's. Remat is the policy that keeps most and fits the card's memory. What no time
is left for (--minutes) is left out, and said so. Writes bench_gpu.json and bench_gpu.md to --output.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # when called as a file

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import UserError, WorkError, run_command  # noqa: E402
from mmed_jax.common.output_files import check_folder  # noqa: E402
from mmed_jax.model.config import PRESETS, LlamaConfig, num_params, to_hf  # noqa: E402

if TYPE_CHECKING:
    from mmed_jax.model.lora import LoraSpec

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "torch", "transformers", "peft", "bitsandbytes", "flash-attn")
# From what keeps most to what keeps least.
REMAT = ("minimal_ctx", "qkv", "full")
# Bytes a parameter that stay on the card: float32 weights and gradients, and the optimizer's moments.
OPTIMIZERS = {"adamw": 4 + 4 + 2 + 4, "adafactor": 4 + 4}
# What is trained, and its recipe. Frozen weights: bfloat16, or of the linear modules 4 bits and a bfloat16 for each 64.
TUNINGS = {"full": "stage1:8b", "lora": "stage1:8b-lora", "qlora": "stage1:8b-qlora"}
NF4_BYTES = 0.5 + 2 / 64
ADAPTER_BYTES = 16  # a parameter: weight, gradient and moments in float32
# Packages that a peer needs for a tuning.
NEEDS = {"lora": ("peft",), "qlora": ("peft", "bitsandbytes")}
# Logits of a chunk, the head in float32, a layer's own working memory: 0.6 to 4.3e9 as compiled for an H200.
WORKING_BYTES = 4.5e9
# The whole card is never ours: the driver, the context and fragmentation take part of it.
USABLE = 0.93
TIMEOUT = 400


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/bench_gpu"), help="folder (default: %(default)s)")
    parser.add_argument("--model", default="llama3-8b", choices=[p for p in PRESETS if p != "demo"])
    parser.add_argument("--tokens", type=int, default=16384, help="in a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="measured in each case (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after these (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU: the figures mean nothing")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.tokens < 8192:
        raise UserError("--steps must be at least 1 and --tokens at least 8192")
    if not 0 < args.minutes < float("inf"):
        raise UserError(f"--minutes={args.minutes}: must be a number greater than 0")
    return args


def find_card() -> dict[str, Any]:
    """The first NVIDIA GPU by nvidia-smi. Raises UserError when there is none."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        raise UserError(
            "this machine has no NVIDIA GPU (nvidia-smi finds none); --smoke tries the script on the CPU"
        ) from None
    name, mebibytes, driver = (part.strip() for part in line.split(","))
    return {"name": name, "bytes": int(mebibytes) * 2**20, "driver": driver}


def activation_bytes(cfg: LlamaConfig, remat: str) -> float:
    """Bytes a token that the layers keep for the backward pass, bfloat16, by policy (mmed_jax/model/remat.py)."""
    d, heads = cfg.hidden_size, cfg.num_heads * cfg.head_dim
    kept = {"full": 0, "qkv": heads + 2 * cfg.num_kv_heads * cfg.head_dim}
    # context and its log-sum-exp, attn_out, gate and up.
    kept["minimal_ctx"] = kept["qkv"] + heads + 2 * cfg.num_heads + d + 2 * cfg.intermediate_size
    return 2.0 * cfg.num_layers * (d + kept[remat])


def adapter(cfg: LlamaConfig, tuning: str) -> "LoraSpec | None":
    """The adapter of a tuning's recipe, None for full fine-tuning."""
    from mmed_jax.config.recipes import load_config
    from mmed_jax.model.lora import lora_spec

    return None if tuning == "full" else lora_spec(load_config(TUNINGS[tuning]).lora, cfg)


def resident_bytes(cfg: LlamaConfig, tuning: str, optimizer: str) -> float:
    """Bytes that stay on the card: weights, and gradients and moments of what is trained."""
    total = num_params(cfg)
    spec = adapter(cfg, tuning)
    if spec is None:
        return total * OPTIMIZERS[optimizer]
    from mmed_jax.model.lora import num_adapter_params

    d, heads = cfg.hidden_size, cfg.num_heads + 2 * cfg.num_kv_heads
    attention = d * cfg.head_dim * (heads + cfg.num_heads)
    linear = cfg.num_layers * (attention + 3 * d * cfg.intermediate_size)
    frozen = 2 * total if tuning == "lora" else 2 * (total - linear) + NF4_BYTES * linear
    return frozen + ADAPTER_BYTES * num_adapter_params(spec, cfg)


def policies_that_fit(
    cfg: LlamaConfig, optimizer: str, tokens: int, card_bytes: float, tuning: str = "full"
) -> list[str]:
    """Remat policies by arithmetic, the one that keeps most first; the leanest always stays, to be tried."""
    room = USABLE * card_bytes - resident_bytes(cfg, tuning, optimizer) - WORKING_BYTES
    return [p for p in REMAT if activation_bytes(cfg, p) * tokens <= room or p == REMAT[-1]]


def cases(args: argparse.Namespace, cfg: LlamaConfig, card_bytes: float) -> list[dict[str, Any]]:
    """What is measured, most wanted first."""

    def case(
        system: str, seq_len: int, packed: bool, optimizer: str = "adafactor", tuning: str = "full"
    ) -> dict[str, Any]:
        rows = max(1, args.tokens // seq_len)
        if system != "mmed_jax":
            tries = [{"micro_rows": n} for n in (4, 2, 1) if n <= rows]
        else:
            tries = [{"remat": p} for p in policies_that_fit(cfg, optimizer, rows * seq_len, card_bytes, tuning)]
        shape = f"{rows} x {seq_len} {'packed' if packed else 'one document a row'}"
        return {
            "system": system,
            "shape": shape,
            "rows": rows,
            "seq_len": seq_len,
            "packed": packed,
            "optimizer": optimizer,
            "tuning": tuning,
            "tries": tries,
        }

    def adapters(seq_len: int) -> list[dict[str, Any]]:
        systems = ("mmed_jax", "peft")
        return [case(system, seq_len, True, "adamw", tuning) for tuning in ("lora", "qlora") for system in systems]

    if args.smoke:
        return [case("mmed_jax", 256, True), case("transformers", 256, True), *adapters(256)]
    wanted = [case("mmed_jax", 2048, True), case("mmed_jax", 8192, True), case("transformers", 2048, True)]
    wanted += adapters(2048)
    wanted += [case("mmed_jax", 8192, False), case("transformers", 8192, False)]
    if num_params(cfg) * OPTIMIZERS["adamw"] < USABLE * card_bytes - WORKING_BYTES:
        wanted.insert(2, case("mmed_jax", 2048, True, "adamw"))
    return wanted


def run_case(system: str, case: dict[str, Any], smoke: bool) -> tuple[dict[str, Any] | None, str]:
    """One measurement in its own process: (result, ""), or (None, why not)."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    env |= {"HF_HUB_OFFLINE": "1", "XLA_PYTHON_CLIENT_MEM_FRACTION": str(USABLE)}
    if smoke:
        env["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder, "case.json"), Path(folder, "result.json")
        given.write_text(json.dumps(case))
        command = [sys.executable, "-m", "scripts.bench_gpu_systems", system, str(given), str(result)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=TIMEOUT, cwd=ROOT)
        except subprocess.TimeoutExpired:
            return None, f"not done after {TIMEOUT} s"
        if done.returncode == 0:
            return json.loads(result.read_text()), ""
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return None, ("out of memory: " if done.returncode == 3 else "") + last


def measure(args: argparse.Namespace, model: dict, wanted: list[dict], begun: float) -> list[dict[str, Any]]:
    """Runs the cases; each gets "result", or "missing" with the reason."""
    for case in wanted:
        label = f"{case['system']}, {case['tuning']}, {case['shape']}, {case['optimizer']}"
        needs = NEEDS.get(case["tuning"], ()) if case["system"] == "peft" else ()
        if time.monotonic() - begun > args.minutes * 60:
            case["missing"] = f"no time left within --minutes={args.minutes:g}"
        elif missing := [p for p in needs if not _installed(p)]:
            case["missing"] = f"not installed here: {', '.join(missing)} (pip install {' '.join(missing)})"
        elif case["system"] != "mmed_jax" and not args.smoke and not torch_has_cuda():
            case["missing"] = "torch with CUDA is not installed here (pip install torch transformers)"
        else:
            for attempt in case["tries"]:
                job = {"model": model, "steps": args.steps, "cpu": args.smoke, **case, **attempt}
                result, case["missing"] = run_case(case["system"], job, args.smoke)
                if result is not None:
                    case |= {"result": result, **attempt}
                    break
                if not case["missing"].startswith("out of memory"):
                    break
        text = case["missing"] or f"{case['rows'] * case['seq_len'] / result['seconds_per_step']:,.0f} tokens/s"
        print(f"{label}: {text}", flush=True)
    return wanted


def torch_has_cuda() -> bool:
    code = "import torch, transformers, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def summary(case: dict[str, Any], flops_per_token: float, measured: float, sheet: float | None) -> dict[str, Any]:
    """Speed of a case that ran. Both systems are counted by the same FLOPs."""
    result = case["result"]
    rate = case["rows"] * case["seq_len"] / result["seconds_per_step"]
    return {
        "tokens_per_second": rate,
        "mfu_of_measured": rate * flops_per_token / measured,
        "mfu_of_sheet": rate * flops_per_token / sheet if sheet else None,
        "peak_bytes": result["peak_bytes"],
    }


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    card, rates = report["card"], report["matmul"]["flops_per_second"]
    lines = [f"{report['model']} on {card['name']}, {report['date']}, {report['versions']}", ""]
    lines += [f"bfloat16 product {size}: {rate / 1e12:,.1f} TFLOP/s" for size, rate in rates.items()]
    columns = (
        "system",
        "tuning",
        "batch",
        "optimizer",
        "remat or micro-batch",
        "attention",
        "tokens/s",
        "MFU of measured rate",
    )
    lines += ["", f"| {' | '.join(columns)} | MFU of data sheet | peak GiB |", "|---" * 10 + "|"]
    for case in report["cases"]:
        head = f"| {case['system']} | {case['tuning']} | {case['shape']} | {case['optimizer']} |"
        if case["missing"]:
            lines.append(f"{head} not run: {case['missing']} | | | | | |")
            continue
        s = case["summary"]
        sheet = f"{s['mfu_of_sheet']:.1%}" if s["mfu_of_sheet"] else "not known"
        peak = f"{s['peak_bytes'] / 2**30:.1f}" if s["peak_bytes"] else "not known"
        how = case.get("remat") or f"{case['micro_rows']} rows"
        lines.append(
            f"{head} {how} | {case['result']['attention']} | {s['tokens_per_second']:,.0f} | "
            f"{s['mfu_of_measured']:.1%} | {sheet} | {peak} |"
        )
    for case in report["cases"]:
        if case.get("result", {}).get("kernels"):
            total = case["result"]["profiled_seconds_per_step"]
            what = f"{case['tuning']}, {case['shape']}, {case['optimizer']}"
            lines += ["", f"Biggest kernels, {what}; all take {total * 1e3:,.1f} ms a step:", ""]
            lines += ["| ms a step | share | calls | kernel | from |", "|---|---|---|---|---|"]
            lines += [
                f"| {k['seconds_per_step'] * 1e3:,.2f} | {k['seconds_per_step'] / total:.1%} | "
                f"{k['calls_per_step']:,.0f} | {k['name'][:60]} | {k['where'][-80:]} |"
                for k in case["result"]["kernels"]
            ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    begun = time.monotonic()
    if args.smoke:
        cfg = dataclasses.replace(
            PRESETS["demo"],
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_layers=1,
            num_heads=2,
            num_kv_heads=1,
            head_dim=32,
            bos_token_id=1,
            eos_token_id=(2,),
            pad_token_id=0,
        )
        card = {"name": f"a CPU ({platform.machine()}), a try of the script", "bytes": 2 * WORKING_BYTES, "driver": ""}
        args.steps, args.tokens = 1, 512
    else:
        card, cfg = find_card(), PRESETS[args.model]
    args.output = check_folder(args.output, "--output")
    model = to_hf(cfg, "float32")
    shape = {"model": model, "rows": 1, "seq_len": 64 if args.smoke else args.tokens, "cpu": args.smoke}
    products, why = run_case("matmul", shape, args.smoke)
    if products is None:
        raise WorkError(f"the rate of products could not be measured: {why}")
    if products["platform"] != "gpu" and not args.smoke:
        raise UserError(f"jax sees no GPU here but '{products['platform']}'; install it with pip install '.[cuda]'")
    best = max(products["flops_per_second"].values())
    print(f"{card['name']}: {best / 1e12:,.1f} TFLOP/s in bfloat16 products", flush=True)

    from mmed_jax.parallel.chips import peak_flops
    from mmed_jax.training.flops import train_flops_per_token

    measured = measure(args, model, cases(args, cfg, card["bytes"]), begun)
    for case in measured:
        if not case["missing"]:
            flops = train_flops_per_token(cfg, case["seq_len"], adapter(cfg, case["tuning"]))
            case["summary"] = summary(case, flops, best, peak_flops(products["device_kind"]))
    versions = {p: importlib.metadata.version(p) for p in PACKAGES if _installed(p)}
    report = {
        "model": "a tiny model" if args.smoke else args.model,
        "card": card,
        "versions": versions,
        "matmul": products,
        "date": datetime.date.today().isoformat(),
        "seconds": time.monotonic() - begun,
        "cases": measured,
    }
    (args.output / "bench_gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.output / "bench_gpu.md").write_text(markdown(report))
    print(markdown(report) + f"\n{report['seconds']:.0f} s; also in {args.output}/bench_gpu.json and bench_gpu.md")
    failed = [c["missing"] for c in measured if c["system"] == "mmed_jax" and c["missing"]]
    if failed:
        raise WorkError(f"{len(failed)} of our cases did not run, the first because: {failed[0]}")


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    run_command(main)
