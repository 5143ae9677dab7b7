"""What scripts/bench_gpu.py measures, each in a process of its own:

    python -m scripts.bench_gpu_systems matmul|mmed_jax|transformers|peft CASE.json RESULT.json

CASE.json: model (architecture under Hugging Face's names), rows, seq_len, packed, optimizer, tuning, remat, micro_rows,
steps, cpu (a try without a card: float32). RESULT.json: what was measured. Weights and tokens are random.
"""

import gc
import json
import math
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmed_jax.config.recipes import load_config
from scripts.bench_gpu import TUNINGS

WARM_UP = 2
KERNELS = 10


def packed_rows(rows: int, length: int, packed: bool, vocab: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as training has it, every target trained. Packed: documents of 64 to 1024 tokens, more short ones."""
    rng = np.random.default_rng(seed)
    segments, positions = np.ones((rows, length), np.int32), np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    for row in range(rows if packed else 0):
        start, number = 0, 1
        while start < length:
            end = min(length, start + int(2 ** rng.uniform(6, 10)))
            segments[row, start:end], positions[row, start:end] = number, np.arange(end - start)
            start, number = end, number + 1
    tokens = rng.integers(0, vocab, (rows, length), dtype=np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "segment_ids": segments,
        "positions": positions,
        "language": np.ones_like(tokens),
        "loss_mask": np.ones(tokens.shape, np.float32),
    }


def matmul(case: dict) -> dict[str, Any]:
    """bfloat16 products of the sizes of the model's MLP and of a square: the most that a step could reach."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    d, f = case["model"]["hidden_size"], case["model"]["intermediate_size"]
    tokens = case["rows"] * case["seq_len"]
    rates = {}
    for m, k, n in ((tokens, d, f), (tokens, f, d), (2 * d, 2 * d, 2 * d)):
        a, b = jnp.ones((m, k), jnp.bfloat16), jnp.full((k, n), 0.01, jnp.bfloat16)
        product = jax.jit(lambda a, b: (a @ b).astype(jnp.bfloat16))
        product(a, b).block_until_ready()
        count = 3 if case["cpu"] else 200
        start = time.perf_counter()
        for _ in range(count):
            out = product(a, b)
        out.block_until_ready()
        rates[f"{m}x{k}x{n}"] = 2 * m * k * n * count / (time.perf_counter() - start)
    return {"platform": device.platform, "device_kind": device.device_kind, "flops_per_second": rates}


def random_base(abstract: dict[str, Any]) -> dict[str, Any]:
    """Frozen weights of normal(0.02), norms of 1; quantised ones as random codes of about that spread."""
    import jax
    import jax.numpy as jnp

    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)

    def leaf(number: int, path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
        name, key = path[-1].key, jax.random.key(number)
        if name == "nf4":
            return jax.random.bits(key, x.shape, jnp.uint8)
        if name == "absmax":
            return jnp.full(x.shape, 0.04, x.dtype)
        if "norm" in path[-2].key:
            return jnp.ones(x.shape, x.dtype)
        return jax.random.normal(key, x.shape, x.dtype) * jnp.asarray(0.02, x.dtype)

    made = [
        jax.jit(leaf, static_argnums=(0, 1, 2), out_shardings=x.sharding)(i, path, x)
        for i, (path, x) in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, made)


def mmed_jax(case: dict) -> dict[str, Any]:
    """Training steps of the program that `train` runs; a profile of two more."""
    import jax

    from mmed_jax.model.attention import resolve_backend
    from mmed_jax.model.config import from_hf
    from mmed_jax.parallel import sharding
    from mmed_jax.training import state as placement
    from mmed_jax.training.flops import train_flops_per_token
    from mmed_jax.training.profiling import Profiler, operations
    from mmed_jax.training.program import train_program

    cfg = from_hf(case["model"])
    config = load_config(TUNINGS[case["tuning"]])
    config.batch_size, config.data.seq_len, config.data.packing = case["rows"], case["seq_len"], case["packed"]
    config.compute_dtype = "float32" if case["cpu"] else "bfloat16"
    config.remat, config.grad_accum = case["remat"], 1
    config.optim.name, config.optim.mu_dtype = case["optimizer"], "bfloat16"
    device = jax.devices()[0]
    mesh = sharding.make_mesh(devices=[device])
    backend = resolve_backend(
        "auto",
        device.platform,
        case["packed"],
        seq_len=case["seq_len"],
        head_dim=cfg.head_dim,
        dtype=config.compute_dtype,
    )
    program = train_program(config, cfg, mesh, steps=1000, attention=backend)
    host = packed_rows(case["rows"], case["seq_len"], case["packed"], cfg.vocab_size)
    batch = placement.BatchPlacer(mesh, case["rows"], case["seq_len"])(host)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        base = random_base(program.base)
        if program.spec is None:
            params = placement.random_params(cfg, 0, program.state)
        else:
            params = placement.fresh_adapter(program.spec, cfg, 0, program.state, base)
        state = placement.fresh_state(params, program.tx, program.state)
        del params
        start = time.perf_counter()
        step = program.train_step.lower(state, batch, base).compile()
        compile_seconds = time.perf_counter() - start
        for _ in range(WARM_UP):
            state, metrics = step(state, batch, base)
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(case["steps"]):
            state, metrics = step(state, batch, base)
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - start) / case["steps"]
        with Profiler(folder, (1, 2)) as profiler:
            for number in (1, 2):
                profiler.before(number, state)
                state, metrics = step(state, batch, base)
                profiler.after(number, state)
        found = operations(sorted(Path(folder).rglob("*.xplane.pb")))
    memory = step.memory_analysis()
    return {
        "seconds_per_step": seconds,
        "compile_seconds": compile_seconds,
        "attention": backend,
        "flops_per_token": train_flops_per_token(cfg, case["seq_len"], program.spec),
        "loss": float(metrics["loss"]),
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "compiled_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else None,
        "kernels": [
            {"name": o.name, "where": o.where, "seconds_per_step": o.seconds / 2, "calls_per_step": o.calls / 2}
            for o in found[:KERNELS]
        ],
        "profiled_seconds_per_step": sum(o.seconds for o in found) / 2,
    }


def transformers(case: dict) -> dict[str, Any]:
    """The same work by transformers' LlamaForCausalLM: float32 weights, bfloat16 autocast, gradient checkpointing.

    With an adapter by PEFT: the frozen weights in bfloat16, or in nf4 by bitsandbytes; float32 adapters.
    """
    import importlib.util

    import torch
    import transformers as hf

    cpu = case["cpu"]
    if not cpu and not torch.cuda.is_available():
        raise RuntimeError("torch has no CUDA")
    device = torch.device("cpu" if cpu else "cuda")
    config = hf.LlamaConfig(**{k: v for k, v in case["model"].items() if k not in ("model_type", "architectures")})
    attention = "flash_attention_2" if not cpu and importlib.util.find_spec("flash_attn") else "sdpa"
    config._attn_implementation = attention
    config.use_cache = False
    with device:
        model = hf.LlamaForCausalLM(config)
    if case["tuning"] != "full" and not cpu:
        model = model.to(torch.bfloat16)
    model = peft_model(model, case, device) if case["tuning"] != "full" else model
    model.train()
    model.gradient_checkpointing_enable()
    weights = [p for p in model.parameters() if p.requires_grad]
    if not cpu:
        torch.cuda.reset_peak_memory_stats()  # float32 weights were there before they became smaller
    if case["optimizer"] == "adafactor":
        optimizer = torch.optim.Adafactor(weights, lr=1e-5)
    else:
        optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=not cpu)
    host = packed_rows(case["rows"], case["seq_len"], case["packed"], config.vocab_size)
    batch = {k: torch.from_numpy(host[k]).long().to(device) for k in ("tokens", "targets", "positions")}
    parts = range(0, case["rows"], case["micro_rows"])

    def run() -> float:
        total = 0.0
        for first in parts:
            part = {k: v[first : first + case["micro_rows"]] for k, v in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=not cpu):
                logits = model(input_ids=part["tokens"], position_ids=part["positions"]).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), part["targets"].flatten())
            (loss / len(parts)).backward()
            total += loss.detach() / len(parts)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    for _ in range(WARM_UP):
        run()
    gc.collect()
    seconds = []
    for _ in range(case["steps"]):
        start = time.perf_counter()
        loss = run()
        if not cpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds_per_step": statistics.mean(seconds),
        "attention": attention,
        "loss": loss,
        "peak_bytes": None if cpu else torch.cuda.max_memory_allocated(),
        "versions": {"torch": torch.__version__, "transformers": hf.__version__},
    }


def peft_model(model: Any, case: dict, device: Any) -> Any:
    """`model` frozen, for qlora its layers in nf4 with double quantisation, with PEFT's adapter as of the recipes."""
    import torch
    from peft import LoraConfig, get_peft_model

    if case["tuning"] == "qlora":
        from bitsandbytes.nn import Linear4bit, Params4bit

        settings = {"quant_type": "nf4", "compress_statistics": True}
        dtype = torch.float32 if case["cpu"] else torch.bfloat16
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, old in [(n, m) for n, m in part.named_children() if isinstance(m, torch.nn.Linear)]:
                    new = Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=dtype, **settings)
                    new.weight = Params4bit(old.weight.data.cpu(), requires_grad=False, **settings)
                    setattr(part, name, new.to(device))
        model.is_loaded_in_4bit = True  # tells peft which layers it meets
    model.enable_input_require_grads()
    adapter = load_config(TUNINGS[case["tuning"]]).lora
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=adapter.rank,
            lora_alpha=adapter.alpha or 2 * adapter.rank,
            lora_dropout=adapter.dropout,
            target_modules="all-linear",
        ),
    )


SYSTEMS = {"matmul": matmul, "mmed_jax": mmed_jax, "transformers": transformers, "peft": transformers}


def main(argv: list[str]) -> int:
    """Exit code 0, or 3 when memory ran out: the parent then tries what needs less."""
    if len(argv) != 3:
        sys.exit(__doc__)
    system, case, result = argv
    try:
        measured = SYSTEMS[system](json.loads(Path(case).read_text()))
    except Exception as e:
        message = f"{type(e).__name__}: {e}"
        print(" ".join(message.split())[:500], file=sys.stderr)
        return 3 if re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemory", message) else 1
    if not math.isfinite(measured.get("loss", 0.0)):
        print(f"the loss is {measured['loss']}", file=sys.stderr)
        return 1
    Path(result).write_text(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
