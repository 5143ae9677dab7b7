"""The systems that scripts/bench_train.py compares, each in a process of its own that waits for its turn.

    python -m scripts.bench_systems NAME SPEC.json

Protocol: one JSON line on stdin per turn, {"data": "dense" | "real", "seconds": S}, one JSON line on stdout as answer.
All systems have the same architecture, float32, AdamW and clipping, and see the same samples with the same ids. Those
of adapters (mmed_jax-lora, peft) have the same rank on every linear module, alpha 2 x rank and no dropout.
"""

import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = -100  # label of a target that is not trained, in torch and Transformers
LR, B1, B2, WEIGHT_DECAY, CLIP = 1e-4, 0.9, 0.95, 0.01, 1.0
BUCKET = 128  # lengths that a compiled peer pads to: multiples of it, so that it compiles a few programs only


class PaddedSamples:
    """Batches of samples as Trainer's collators make them: in random order, padded on the right to the longest."""

    def __init__(self, path: Path, batch: int, *, bucket: int = 1, seed: int = 0):
        data = np.load(path)
        self.ids, self.trained, self.offsets = data["ids"], data["trained"], data["offsets"]
        self.batch, self.bucket, self.seed = batch, bucket, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Endless (ids, labels, attention mask), int64 [batch, longest]; labels are aligned with ids, not shifted."""
        rng = np.random.default_rng(self.seed)
        while True:
            order = rng.permutation(len(self.offsets) - 1)
            for start in range(0, len(order) - self.batch + 1, self.batch):
                rows = [slice(*self.offsets[i : i + 2]) for i in order[start : start + self.batch]]
                longest = max(s.stop - s.start for s in rows)
                longest = -(-longest // self.bucket) * self.bucket
                ids = np.zeros((self.batch, longest), np.int64)
                labels = np.full((self.batch, longest), IGNORED, np.int64)
                mask = np.zeros((self.batch, longest), np.int64)
                for row, s in enumerate(rows):
                    n = s.stop - s.start
                    ids[row, :n], mask[row, :n] = self.ids[s], 1
                    labels[row, :n] = np.where(self.trained[s], self.ids[s], IGNORED)
                yield ids, labels, mask


def dense_rows(spec: dict) -> np.ndarray:
    """Random ids, int64 [batch, seq_len + 1]: rows without padding in which every target is trained."""
    return np.random.default_rng(0).integers(0, spec["model"]["vocab_size"], (spec["batch"], spec["seq_len"] + 1))


class MmedJax:
    """This project's training step, fed by its own loader from a packed table; set up as train.py does."""

    lora = False

    def setup(self, spec: dict) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import jax

        from mmed_jax.config.overrides import parse_args
        from mmed_jax.data.loader import BatchStream
        from mmed_jax.data.packed_table import Table
        from mmed_jax.model.config import from_hf
        from mmed_jax.parallel import sharding
        from mmed_jax.parallel.host_allocator import keep_freed_memory
        from mmed_jax.training import state
        from mmed_jax.training.program import attention_backend, train_program

        self.block = jax.block_until_ready
        device = jax.devices()[0]
        if device.platform == "cpu":
            keep_freed_memory()
        config, _ = parse_args(["--config=stage1"])
        config.update(batch_size=spec["batch"], batch_tokens=0)
        config.data.seq_len = spec["seq_len"]
        config.optim.update(lr=LR, b1=B1, b2=B2, weight_decay=WEIGHT_DECAY, clip_norm=CLIP)
        if self.lora:
            config.lora.update(rank=spec["rank"], alpha=2.0 * spec["rank"])
        cfg = from_hf(spec["model"])
        self.mesh = sharding.make_mesh(devices=[device])
        backend = attention_backend(config, cfg, device.platform, 1)
        program = train_program(config, cfg, self.mesh, steps=10**6, attention=backend)
        self.base: dict[str, Any] = {}
        if program.spec is None:
            params = state.random_params(cfg, 0, program.state)
        else:
            self.base = state.random_params(cfg, 0, {"params": program.base})
            params = state.fresh_adapter(program.spec, cfg, 0, program.state, self.base)
        self.state = state.fresh_state(params, program.tx, program.state)
        self.trained = sum(x.size for x in jax.tree.leaves(params))
        self.train_step = program.train_step
        self.placer = state.BatchPlacer(self.mesh, spec["batch"], spec["seq_len"])
        stream = BatchStream(Table(Path(spec["table"]), "train"), spec["batch"], 0, local_rows=self.placer.rows)
        self.batches = {"dense": itertools.repeat(_packed_dense(spec)), "real": iter(stream)}

    def step(self, data: str) -> dict[str, int]:
        import jax

        batch = next(self.batches[data])
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.train_step(self.state, self.placer(batch), self.base)
        self.block(metrics["loss"])
        self.loss = float(metrics["loss"])
        return {
            "slots": batch["tokens"].size,
            "tokens": int((batch["segment_ids"] > 0).sum()),
            "supervised": int(batch["loss_mask"].sum()),
        }


class MmedJaxLora(MmedJax):
    """The same with an adapter on frozen weights."""

    lora = True


def _packed_dense(spec: dict) -> dict[str, np.ndarray]:
    rows = dense_rows(spec).astype(np.int32)
    ones = np.ones((spec["batch"], spec["seq_len"]), np.int32)
    positions = np.broadcast_to(np.arange(spec["seq_len"], dtype=np.int32), ones.shape)
    return {
        "tokens": rows[:, :-1],
        "targets": rows[:, 1:],
        "segment_ids": ones,
        "positions": positions,
        "language": ones,
        "loss_mask": ones.astype(np.float32),
    }


class Transformers:
    """LlamaForCausalLM in the loop that transformers.Trainer runs: its collator, clipping and fused AdamW."""

    def setup(self, spec: dict) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        self.torch = torch
        torch.manual_seed(0)
        self.model = self.wrap(LlamaForCausalLM(LlamaConfig(**spec["model"])), spec).train()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in self.weights)
        self.optimizer = torch.optim.AdamW(self.weights, lr=LR, betas=(B1, B2), weight_decay=WEIGHT_DECAY, fused=True)
        ids = dense_rows(spec)[:, :-1]
        dense = itertools.repeat((ids, ids, np.ones_like(ids)))
        self.batches = {"dense": dense, "real": iter(PaddedSamples(spec["samples"], spec["batch"]))}

    def wrap(self, model: Any, spec: dict) -> Any:
        """The model that is trained: here all of it."""
        return model

    def step(self, data: str) -> dict[str, int]:
        ids, labels, mask = next(self.batches[data])
        ids_t, labels_t, mask_t = (self.torch.from_numpy(x) for x in (ids, labels, mask))
        self.optimizer.zero_grad()
        loss = self.model(input_ids=ids_t, labels=labels_t, attention_mask=mask_t, use_cache=False).loss
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimizer.step()
        self.loss = loss.item()
        return _counts(ids, labels, mask, data)


class Peft(Transformers):
    """The same loop with an adapter of PEFT on the frozen model."""

    def wrap(self, model: Any, spec: dict) -> Any:
        """Frozen, with float32 adapters on every linear module but the head."""
        from peft import LoraConfig, get_peft_model

        rank = spec["rank"]
        return get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear"
            ),
        )


class Nnx:
    """A plain Flax NNX training loop, as its guides show it: modules, layers by scan, optax losses and AdamW."""

    def setup(self, spec: dict) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from scripts.bench_nnx import make_train_step

        self.train_step = make_train_step(spec["model"], lr=LR, b1=B1, b2=B2, weight_decay=WEIGHT_DECAY, clip=CLIP)
        ids = dense_rows(spec)[:, :-1]
        padded = PaddedSamples(spec["samples"], spec["batch"], bucket=BUCKET)
        self.batches = {"dense": itertools.repeat((ids, ids, np.ones_like(ids))), "real": iter(padded)}

    def step(self, data: str) -> dict[str, int]:
        ids, labels, mask = next(self.batches[data])
        self.loss = float(self.train_step(ids.astype(np.int32), labels.astype(np.int32), mask.astype(bool)))
        return _counts(ids, labels, mask, data)


def _counts(ids: np.ndarray, labels: np.ndarray, mask: np.ndarray, data: str) -> dict[str, int]:
    # The last position of a full row has no target in these systems, but is computed: it counts as a dense token.
    supervised = labels.size if data == "dense" else int((labels[:, 1:] != IGNORED).sum())
    return {"slots": ids.size, "tokens": int(mask.sum()), "supervised": supervised}


SYSTEMS: dict[str, type] = {
    "mmed_jax": MmedJax,
    "mmed_jax-lora": MmedJaxLora,
    "transformers": Transformers,
    "peft": Peft,
    "nnx": Nnx,
}


def turn(system: Any, data: str, seconds: float) -> dict[str, Any]:
    """Steps until `seconds` are over, two at least; sums of what they did, wall and processor seconds."""
    sums: dict[str, int] = {}
    cpu, start, steps = time.process_time(), time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - start < seconds:
        for key, value in system.step(data).items():
            sums[key] = sums.get(key, 0) + value
        steps += 1
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"steps": steps, **sums, "seconds": wall, "cpu_seconds": cpu, "loss": system.loss}


def answers(name: str, spec: dict, asked: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What a system says: how its start went, after the first step on all data, then a turn for each line asked."""
    started = time.perf_counter()
    system = SYSTEMS[name]()
    system.setup(spec)
    ready = time.perf_counter() - started
    first = {}
    for data in spec["data"]:
        begin = time.perf_counter()
        system.step(data)
        first[data] = time.perf_counter() - begin
    yield {"setup_seconds": ready, "first_step_seconds": first, "trained": getattr(system, "trained", None)}
    for line in asked:
        wanted = json.loads(line)
        done = turn(system, wanted["data"], wanted["seconds"])
        yield {**done, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[0] not in SYSTEMS:
        sys.exit(__doc__)
    name, spec_path = argv
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    # Answers have stdout to themselves; whatever a library prints goes to stderr.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in answers(name, spec, sys.stdin):
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
