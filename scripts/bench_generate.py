"""Speed of generation and scoring beside `transformers`: the same weights, prompts and answer lengths, in one run.

    python -m scripts.bench_generate --against=transformers                    random weights of 125 million
    python -m scripts.bench_generate --against=transformers --size=13m
    python -m scripts.bench_generate --model=HF_FOLDER --rounds=5

  mixed    prompts and answers of 16 to 512 tokens, log-uniform: what evaluation with explanations asks for
  equal    the same number of prompts, all of 128 tokens, answers of 128
  single   one prompt of 128 tokens, an answer of 128, one row
  score    questions of 16 to 128 tokens behind 512 common ones (few-shot examples), four choices of 1 to 8 tokens each

`transformers` gets batches of as many rows as our engine, sorted by length and padded on the left, and generates with
its key-value cache; each row ends at the length that its prompt is given, in both systems. It scores as evaluation
harnesses do: a padded row for each prompt with one choice. Answers and scores are compared. The first call, which
compiles ours, is not among the turns; its time is shown.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__" and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # when called as a file

from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import UserError, nearest, run_command  # noqa: E402
from scripts.bench_train import checked_output, machine  # noqa: E402

OURS, PEERS = "mmed_jax", ("transformers",)
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "numpy")
SETS = ("mixed", "equal", "single", "score")
# hidden, intermediate, layers, heads, kv heads, vocabulary
SIZES = {"13m": (256, 768, 9, 8, 4, 12288), "125m": (768, 2048, 12, 12, 4, 32768), "tiny": (32, 48, 2, 4, 2, 256)}
SHORT, LONG, COMMON, PLAIN = 16, 512, 512, 128


class Work(NamedTuple):
    """prompts: token ids; answers: tokens to decode for each, or choices: the continuations to score."""

    prompts: list[list[int]]
    answers: list[int] | None = None
    choices: list[list[list[int]]] | None = None

    @property
    def amount(self) -> int:
        """Tokens to decode, or questions."""
        return sum(self.answers) if self.answers else len(self.prompts)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--against", default="", help=f"systems, a,b of {', '.join(PEERS)}")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: random weights of --size)")
    parser.add_argument("--size", choices=SIZES, default="125m", help="of random weights (default: 125m)")
    parser.add_argument("--sets", default=",".join(SETS), help=f"default: {','.join(SETS)}")
    parser.add_argument("--prompts", type=int, default=64, help="of each set but single (default: 64)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows of both (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each system (default: 3)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    args.against, args.sets = ([x for x in value.split(",") if x] for value in (args.against, args.sets))
    for flag, values, known in (("against", args.against, PEERS), ("sets", args.sets, SETS)):
        for name in values:
            if name not in known:
                raise UserError(f"--{flag}: '{name}' is unknown{nearest(name, known)}")
    for name in ("prompts", "batch_size", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: must be at least 1")
    if importlib.util.find_spec("torch") is None and (args.against or not args.model):
        raise UserError("torch is not installed (`scripts/setup.sh test` brings it); else name --model=DIR")
    return args


def make_model(size: str, folder: Path) -> Path:
    """A folder with random weights, written by `transformers`; large enough ones that answers do not repeat a token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv_heads, vocab = SIZES[size]
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            initializer_range=0.08,
        )
    ).save_pretrained(folder)
    return folder


def make_work(name: str, count: int, vocab: int) -> Work:
    """The set `name`, the same in every run."""
    rng = np.random.default_rng(SETS.index(name))

    def draw(n: int) -> list[int]:
        return rng.integers(0, vocab, n).tolist()

    def lengths(low: int, high: int) -> list[int]:
        return np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(int).tolist()

    if name == "mixed":
        return Work([draw(n) for n in lengths(SHORT, LONG)], lengths(SHORT, LONG))
    if name == "score":
        common = draw(COMMON)
        return Work(
            [[*common, *draw(n)] for n in lengths(SHORT, PLAIN)],
            choices=[[draw(int(n)) for n in rng.integers(1, 9, 4)] for _ in range(count)],
        )
    count = 1 if name == "single" else count
    return Work([draw(PLAIN) for _ in range(count)], [PLAIN] * count)


def ours(path: Path, rows: int) -> Callable[[Work], list]:
    from mmed_jax.hf.open_model import open_model
    from mmed_jax.inference.engine import Engine

    source = open_model(path)
    engine = Engine(source.load_params(), source.cfg, max_batch=rows, owned=True)

    def run(work: Work) -> list:
        if work.choices:
            return engine.loglikelihood(work.prompts, work.choices)
        return [c.ids for c in engine.generate(work.prompts, max_new_tokens=work.answers)]

    return run


def theirs(path: Path, rows: int) -> Callable[[Work], list]:
    import torch
    from transformers import LlamaForCausalLM, StoppingCriteria

    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    class Ends(StoppingCriteria):
        """Each row has its own end."""

        def __init__(self, ends: list[int]):
            self.ends = torch.tensor(ends)

        def __call__(self, input_ids, scores, **kwargs):
            return input_ids.shape[1] >= self.ends

    def padded(rows: list[list[int]], left: bool) -> tuple[Any, Any]:
        width = max(map(len, rows))
        ids, mask = torch.zeros((len(rows), width), dtype=torch.long), torch.zeros((len(rows), width), dtype=torch.long)
        for n, row in enumerate(rows):
            at = slice(width - len(row), width) if left else slice(0, len(row))
            ids[n, at], mask[n, at] = torch.tensor(row), 1
        return ids, mask

    def generate(work: Work) -> list:
        out: list = [None] * len(work.prompts)
        order = sorted(range(len(work.prompts)), key=lambda i: len(work.prompts[i]))
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            ids, mask = padded([work.prompts[i] for i in chosen], left=True)
            width, limits = ids.shape[1], [work.answers[i] for i in chosen]
            written = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max(limits),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[Ends([width + n for n in limits])],
            )
            for n, i in enumerate(chosen):
                out[i] = written[n, width : width + limits[n]].tolist()
        return out

    def score(work: Work) -> list:
        out = [[0.0] * len(c) for c in work.choices]
        asked = [(i, k) for i, of in enumerate(work.choices) for k in range(len(of))]
        whole = {(i, k): [*work.prompts[i], *work.choices[i][k]] for i, k in asked}
        asked.sort(key=lambda a: len(whole[a]))
        for start in range(0, len(asked), rows):
            chosen = asked[start : start + rows]
            ids, mask = padded([whole[a] for a in chosen], left=False)
            logits = model(ids, attention_mask=mask, use_cache=False).logits
            for n, (i, k) in enumerate(chosen):
                begin, choice = len(work.prompts[i]), torch.tensor(work.choices[i][k])
                logp = logits[n, begin - 1 : begin - 1 + len(choice)].log_softmax(-1)
                out[i][k] = float(logp.gather(1, choice[:, None]).sum())
        return out

    def run(work: Work) -> list:
        with torch.inference_mode():
            return score(work) if work.choices else generate(work)

    return run


def measure(systems: dict[str, Callable], work: Work, rounds: int) -> dict[str, dict]:
    """{system: {"first": seconds of the first call, "turns": [seconds], "out": answers}}; systems take turns."""
    found: dict[str, dict] = {}
    for name, run in systems.items():
        start = time.perf_counter()
        out = run(work)
        found[name] = {"first": time.perf_counter() - start, "turns": [], "out": out}
    for _ in range(rounds):
        for name, run in systems.items():
            start = time.perf_counter()
            run(work)
            found[name]["turns"].append(time.perf_counter() - start)
    return found


def summary(work: Work, found: dict[str, dict]) -> dict[str, dict]:
    """Per system: median rate (decoded tokens or questions a second), ours over it turn by turn, answers like ours."""
    mine, out = found[OURS], {}

    def same(a: list, b: list) -> bool:
        return np.allclose(a, b, rtol=1e-5, atol=1e-3) if work.choices else a == b

    for name, f in found.items():
        alike = [same(a, b) for a, b in zip(f["out"], mine["out"])]
        out[name] = {
            "rate": work.amount / statistics.median(f["turns"]),
            "first_seconds": f["first"],
            "turns": f["turns"],
            "ours_over_it": statistics.median(t / o for t, o in zip(f["turns"], mine["turns"])),
            "alike": sum(alike),
            "of": len(alike),
        }
    return out


def markdown(results: dict[str, dict[str, dict]]) -> str:
    lines = [["set", "system", "rate", "ours / it", "answers like ours", "first call, s"], ["---"] * 6]
    for name, rows in results.items():
        unit = "questions/s" if name == "score" else "tokens/s"
        for system, r in rows.items():
            ratio = "" if system == OURS else f"{r['ours_over_it']:.2f}"
            same = "" if system == OURS else f"{r['alike']} of {r['of']}"
            lines.append([name, system, f"{r['rate']:,.1f} {unit}", ratio, same, f"{r['first_seconds']:.1f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    args.output = checked_output(args.output)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from mmed_jax.hf.open_model import open_model

    facts, results = machine(PACKAGES), {}
    with tempfile.TemporaryDirectory(prefix="bench_generate_") as folder:
        path = args.model or make_model(args.size, Path(folder))
        vocab = open_model(path).cfg.vocab_size
        makers = {OURS: ours, **({"transformers": theirs} if "transformers" in args.against else {})}
        many = {name: make(path, args.batch_size) for name, make in makers.items()}
        for name in args.sets:
            work = make_work(name, args.prompts, vocab)
            systems = {n: make(path, 1) for n, make in makers.items()} if name == "single" else many
            results[name] = summary(work, measure(systems, work, args.rounds))
            shown = ", ".join(f"{system} {r['rate']:,.1f}" for system, r in results[name].items())
            print(f"{name}: {len(work.prompts)} prompts, {sum(map(len, work.prompts)):,} tokens; {shown}", flush=True)
    print(f"\n{facts['cpu']}, {facts['cores']} cores, {facts['date']}, {facts['versions']}\n")
    print(markdown(results))
    if args.output:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "output"}
        whole = {"machine": facts, "settings": settings, "results": results}
        args.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
