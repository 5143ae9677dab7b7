"""Speed of the input side beside other systems: from records in memory to packed rows, in turns in one run.

    python -m scripts.bench_data                                           ours and the tokenizer alone
    python -m scripts.bench_data --against=datasets,trl --records='runs/real/records/stage1/*.jsonl'

  mmed_jax   chat pieces tokenized role by role, the mask of trained tokens, best-fit packing, the table written to disk
  tokenizer  encode_batch_fast of conversations that are rendered already, and nothing else: the ceiling
  datasets   datasets.map of chat template and tokenizer over batches, then trl.pack_dataset (best-fit decreasing)
  trl        what trl.SFTTrainer does to conversations with packing=True and assistant_only_loss=True before it trains

All start from the same conversations in memory; `datasets` makes no mask of trained tokens. The peers need the packages
datasets and trl, which are no requirement of this project (`pip install trl` brings both).
"""

import argparse
import copy
import itertools
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # when called as a file

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import UserError, nearest, run_command  # noqa: E402
from scripts.bench_train import checked_output, installed, machine, read_all, tokenizer_for  # noqa: E402

OURS, CEILING, PEERS = "mmed_jax", "tokenizer", ("datasets", "trl")
BATCH = 1000  # conversations that the peers tokenize with one call: the default of datasets.map
PACKAGES = ("tokenizers", "transformers", "datasets", "trl", "numpy", "pyarrow")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--against", default="", help=f"systems, a,b of {', '.join(PEERS)}")
    parser.add_argument("--records", default="", help="record files, a,b,c or patterns (default: the embedded ones)")
    parser.add_argument("--tokenizer", default="", help='folder, or "demo" (default: trained on --records)')
    parser.add_argument("--vocab_size", type=int, default=32768, help="ids of a tokenizer trained here")
    parser.add_argument("--examples", type=int, default=20000, help="records in all; repeated when there are fewer")
    parser.add_argument("--seq_len", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each system (default: 3)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    args.against = [name for name in args.against.split(",") if name]
    for name in args.against:
        if name not in PEERS:
            raise UserError(f"--against: '{name}' is unknown{nearest(name, PEERS)}")
        for package in ("datasets", "trl"):
            if not installed(package):
                raise UserError(f"--against={name}: the package {package} is not installed; `pip install trl`")
    for name in ("rounds", "examples", "seq_len", "vocab_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: must be at least 1")
    return args


def ours(tok, records: list[dict], seq_len: int, folder: Path) -> Callable[[], int]:
    from mmed_jax.data.pack import pack
    from mmed_jax.data.packed_table import write_rows
    from mmed_jax.data.tokenize import RenderSettings, build_samples

    def run() -> int:
        samples = build_samples(tok, records, RenderSettings(seq_len=seq_len))
        write_rows(folder, "train", samples, pack(samples.slots, seq_len))
        return len(samples.ids)

    return run


def tokenizer_alone(tok, texts: list[str]) -> Callable[[], int]:
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(tok.backend_tokenizer.to_str())

    def run() -> int:
        batches = (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))
        return sum(len(e.ids) for b in batches for e in fast.encode_batch_fast(b, add_special_tokens=False))

    return run


def map_and_pack(tok, talks: list[list[dict]], seq_len: int) -> Callable[[], int]:
    import datasets
    from trl import pack_dataset

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict({"messages": talks})

    def tokenize(batch: dict) -> dict:
        return tok(tok.apply_chat_template(batch["messages"], tokenize=False), add_special_tokens=False)

    def run() -> int:
        ids = data.map(tokenize, batched=True, batch_size=BATCH, remove_columns="messages", load_from_cache_file=False)
        packed = pack_dataset(ids, seq_len, strategy="bfd", map_kwargs={"load_from_cache_file": False})
        return sum(packed.with_format("arrow")[:]["input_ids"].combine_chunks().value_lengths().to_pylist())

    return run


# The plain Llama-3 template with the marks that tell Transformers what the assistant wrote.
MARKED_TEMPLATE = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if m['role'] == 'assistant' %}{%- generation %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}"
    "{%- else %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
)


def sft_trainer(tok, talks: list[list[dict]], seq_len: int, folder: Path) -> Callable[[], int]:
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), **sizes))
    config = SFTConfig(
        output_dir=str(folder),
        packing=True,
        max_length=seq_len,
        assistant_only_loss=True,
        report_to="none",
        use_cpu=True,
        bf16=False,
        eos_token=tok.eos_token,
        pad_token=tok.pad_token,
    )
    marked = copy.deepcopy(tok)
    marked.chat_template = MARKED_TEMPLATE
    assert marked.apply_chat_template(talks[0], tokenize=False) == tok.apply_chat_template(talks[0], tokenize=False)

    def run() -> int:
        # A data set of its own each time: what a cache holds is not measured.
        data = datasets.Dataset.from_dict({"messages": talks})
        trainer = SFTTrainer(model, args=config, train_dataset=data, processing_class=marked)
        return sum(map(len, trainer.train_dataset.with_format("arrow")[:]["input_ids"].to_pylist()))

    return run


def measure(systems: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[dict]]:
    """{system: [{"tokens", "seconds", "cpu_seconds"} of each turn]}."""
    results: dict[str, list[dict]] = {name: [] for name in systems}
    for number in range(rounds):
        for name, run in systems.items():
            cpu, start = time.process_time(), time.perf_counter()
            tokens = run()
            turn = {"tokens": tokens, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            results[name].append(turn)
        shown = (f"{name} {turns[-1]['tokens'] / turns[-1]['seconds'] / 1e3:,.0f}" for name, turns in results.items())
        print(f"round {number + 1}: {', '.join(shown)} thousand tokens/s", flush=True)
    return results


def summary(results: dict[str, list[dict]]) -> dict[str, dict]:
    """Medians over turns, and ours over it turn by turn. All by the ids of ours, so that nobody gains by more ids."""
    tokens = results[OURS][0]["tokens"]
    out = {}
    for name, turns in results.items():
        rates = [tokens / t["seconds"] for t in turns]
        out[name] = {
            "tokens_per_second": statistics.median(rates),
            "best": max(rates),
            "worst": min(rates),
            "tokens_per_cpu_second": statistics.median(tokens / t["cpu_seconds"] for t in turns),
            "ours_over_it": statistics.median(t["seconds"] / o["seconds"] for t, o in zip(turns, results[OURS])),
        }
    return out


def markdown(rows: dict[str, dict]) -> str:
    lines = [["system", "thousand tokens/s (worst to best)", "ours / it", "thousand tokens a CPU second"], ["---"] * 4]
    for name, r in rows.items():
        keys = ("tokens_per_second", "worst", "best", "tokens_per_cpu_second")
        rate, worst, best, of_cpu = (r[k] / 1e3 for k in keys)
        ratio = "" if name == OURS else f"{r['ours_over_it']:.2f}"
        lines.append([name, f"{rate:,.0f} ({worst:,.0f} to {best:,.0f})", ratio, f"{of_cpu:,.0f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    args.output = checked_output(args.output)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from scripts.make_tokenizer import messages_of

    facts = machine(PACKAGES)
    folder = Path(tempfile.mkdtemp(prefix="bench_data_"))
    try:
        records = read_all(args.records)
        random.Random(0).shuffle(records)
        tok = tokenizer_for(args, records, folder / "tokenizer")
        records = list(itertools.islice(itertools.cycle(records), args.examples))
        talks = [messages for record in records for messages in messages_of(record)]
        texts = tok.apply_chat_template(talks, tokenize=False)
        systems = {OURS: ours(tok, records, args.seq_len, folder), CEILING: tokenizer_alone(tok, texts)}
        if "datasets" in args.against:
            systems["datasets"] = map_and_pack(tok, talks, args.seq_len)
        if "trl" in args.against:
            systems["trl"] = sft_trainer(tok, talks, args.seq_len, folder / "trl")
        characters = sum(map(len, texts))
        print(f"{len(records):,} records, {len(texts):,} conversations, {characters:,} characters", flush=True)
        results = measure(systems, args.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = summary(results)
    print(f"\n{facts['cpu']}, {facts['cores']} cores, {facts['date']}, {facts['versions']}\n")
    print(markdown(rows))
    if args.output:
        settings = {k: v for k, v in vars(args).items() if k != "output"}
        whole = {"machine": facts, "settings": settings, "summary": rows, "turns": results}
        args.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
