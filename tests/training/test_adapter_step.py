"""The training step of an adapter: one gradient, whatever the accumulation, mesh and base; dropout; what is trained."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from mmed_jax.config.defaults import base as base_config
from mmed_jax.model import llama, lora
from mmed_jax.model.config import PRESETS, LlamaConfig
from mmed_jax.model.quantized_base import abstract_base, base_shardings, quantize_base
from mmed_jax.parallel import sharding
from mmed_jax.training import flops, optim, step
from mmed_jax.training import state as placement
from mmed_jax.training.loss import weighted_nll
from tests.training.test_step import CFG, assert_same, batch, params  # noqa: F401

SPEC = lora.LoraSpec(
    4,
    8.0,
    (
        ("q", (4, 2), (8.0, 8.0)),
        ("v", (4, 4), (8.0, 3.0)),
        ("o", (4, 4), (8.0, 8.0)),
        ("down", (4, 4), (8.0, 8.0)),
        ("head", (3,), (8.0,)),
        ("embed", (4,), (8.0,)),
    ),
)
TX = optax.sgd(1.0)


@functools.cache
def train_step(**options):
    options = step.StepOptions(loss_chunk=64, **options)
    return jax.jit(step.make_train_step(CFG, TX, lambda _: jnp.float32(1.0), options))


@pytest.fixture(scope="module")
def adapter(params):  # noqa: F811
    """Of random numbers in both factors, so that each has a gradient."""
    fresh = jax.device_get(lora.init_adapter(SPEC, CFG, jax.random.key(1), params))
    rng = np.random.default_rng(2)

    def module(target: str, p: dict) -> dict:
        mask = np.asarray(lora.rank_mask(SPEC, target), np.float32)
        b = 0.2 * rng.normal(size=p["lora_b"].shape).astype(np.float32) * mask[..., None, :]
        a = 0.2 * rng.normal(size=p["lora_a"].shape).astype(np.float32) * mask[..., :, None]
        return {"lora_a": a, "lora_b": b}

    tree = {name: module(name, p) for name, p in fresh.items() if name != "layers"}
    return tree | {"layers": {name: module(name, p) for name, p in fresh["layers"].items()}}


def gradient_of(adapter, base, batch, *, mesh=None, at=0, **options):  # noqa: F811
    options = {"lora": SPEC} | options
    fn, spec = train_step(**options), options["lora"]
    if mesh is None:
        state = step.init_state(adapter, TX) | {"step": jnp.int32(at)}
        state, metrics = fn(state, batch, base)
    else:
        with jax.set_mesh(mesh):
            placed = jax.device_put(adapter, sharding.param_shardings(mesh, lora.logical_axes(spec, CFG)))
            frozen = jax.device_put(base, sharding.param_shardings(mesh, llama.logical_axes(CFG)))
            rows = {k: jax.device_put(v, sharding.batch_sharding(mesh)) for k, v in batch.items()}
            state, metrics = fn(step.init_state(placed, TX), rows, frozen)
    grads = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), adapter, state["params"])
    return grads, jax.device_get(metrics)


def test_the_gradient_is_that_of_the_merged_weights(adapter, params, batch):  # noqa: F811
    """By the chain rule from full fine-tuning's gradient at W + s B A: dB = s dW A^T, dA = s B^T dW."""
    scales = lora.scales(SPEC)
    merged = jax.tree.map(lambda x: x, params)  # its own dicts

    def delta(target, p):
        scale = scales[target].reshape(-1, 1, 1) if p["lora_a"].ndim == 3 else scales[target][0]
        return scale * (p["lora_b"] @ p["lora_a"])

    for target, p in adapter["layers"].items():
        merged["layers"][target]["weight"] = merged["layers"][target]["weight"] + delta(target, p)
    merged["head"]["weight"] = merged["head"]["weight"] + delta("head", adapter["head"])
    merged["embed"]["weight"] = merged["embed"]["weight"] + delta("embed", adapter["embed"]).T
    state, metrics = train_step()(step.init_state(merged, TX), batch)
    full = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), merged, state["params"])
    grads, own = gradient_of(adapter, params, batch)
    np.testing.assert_allclose(own["loss"], metrics["loss"], rtol=1e-6)
    for target, ranks, _ in SPEC.modules:
        where = [tree["layers"] if target not in ("head", "embed") else tree for tree in (full, adapter, grads)]
        d_w = where[0][target]["weight"]
        d_w = d_w.T if target == "embed" else d_w
        p, g = where[1][target], where[2][target]
        scale = scales[target].reshape(-1, 1, 1) if d_w.ndim == 3 else scales[target][0]
        keep = lora.rank_mask(SPEC, target)
        assert len(ranks) == (2 if d_w.ndim == 3 else 1)
        np.testing.assert_allclose(g["lora_b"], scale * (d_w @ np.swapaxes(p["lora_a"], -1, -2)), atol=1e-6)
        np.testing.assert_allclose(g["lora_a"], scale * (np.swapaxes(p["lora_b"], -1, -2) @ d_w), atol=1e-6)
        assert not g["lora_a"][keep == 0].any()


@pytest.mark.parametrize("grad_accum", [4])
def test_micro_batches_give_the_gradient_of_one_batch(adapter, params, batch, grad_accum):  # noqa: F811
    assert_same(gradient_of(adapter, params, batch), gradient_of(adapter, params, batch, grad_accum=grad_accum))


@pytest.mark.parametrize(
    "axes",
    [{"fsdp": 4}, {"fsdp": 1, "tensor": 2}, {"fsdp": 2, "context": 2, "tensor": 2}],
    ids=lambda a: "-".join(f"{k}{v}" for k, v in a.items()),
)
def test_every_mesh_gives_the_gradient_of_one_device(adapter, params, batch, axes):  # noqa: F811
    count = int(np.prod(list(axes.values())))
    mesh = sharding.make_mesh(**axes, devices=jax.devices()[:count])
    assert_same(gradient_of(adapter, params, batch), gradient_of(adapter, params, batch, mesh=mesh))


@pytest.mark.parametrize("kind", ["compute", "int8", "nf4"])
def test_gathers_in_two_steps_move_a_base_as_it_is_stored(kind):
    """The gradient is that of one device, and what is gathered of quantised weights are their codes."""
    cfg = dataclasses.replace(CFG, hidden_size=256, intermediate_size=256, num_heads=4, num_kv_heads=4, head_dim=64)
    spec = lora.LoraSpec(2, 4.0, tuple((t, (2, 2), (4.0, 4.0)) for t in lora.LINEAR_TARGETS))
    base = jax.device_get(quantize_base(llama.init_params(cfg, jax.random.key(0)), kind, jnp.float32))
    own = lora.init_adapter(spec, cfg, jax.random.key(1), base)
    own = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), own)
    tokens = np.random.default_rng(3).integers(0, cfg.vocab_size, (16, 8)).astype(np.int32)
    ones = np.ones_like(tokens)
    rows = {"tokens": tokens, "targets": tokens, "segment_ids": ones, "positions": ones * np.arange(8, dtype=np.int32)}
    rows |= {"language": ones, "loss_mask": np.ones(tokens.shape, np.float32)}

    def gradient(line, mesh):
        options = step.StepOptions(loss_chunk=64, lora=spec, remat="full", grad_accum=2, gather_line=line)
        with jax.set_mesh(mesh):
            state = step.init_state(
                jax.device_put(own, sharding.param_shardings(mesh, lora.logical_axes(spec, cfg))), TX
            )
            frozen = jax.device_put(base, base_shardings(mesh, cfg, kind))
            placed = jax.device_put(rows, sharding.batch_sharding(mesh))
            run = jax.jit(step.make_train_step(cfg, TX, lambda _: jnp.float32(1.0), options))
            compiled = run.lower(state, placed, frozen).compile()
            return compiled(state, placed, frozen)[0]["params"], compiled.as_text()

    one, _ = gradient(0, sharding.make_mesh(devices=jax.devices()[:1]))
    two, text = gradient(2, sharding.make_mesh(data=2, fsdp=4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-5), one, two)
    gathers = [line for line in text.splitlines() if re.search(r" all-gather(-start)?\(", line)]
    stored = {"compute": "f32", "int8": "s8", "nf4": "u8"}[kind]
    of_weights = [line for line in gathers if re.search(r"\[(1,)?(256|64),(256|128|64|32)\]", line)]
    assert of_weights and all(f" {stored}[" in line for line in of_weights), of_weights
    groups = {re.search(r"replica_groups=([^ ]*), ", line)[1] for line in of_weights}
    assert groups == {"{{0,1},{2,3},{4,5},{6,7}}", "{{0,2},{1,3},{4,6},{5,7}}"}


def test_dropout_is_drawn_by_seed_step_and_micro_batch_and_never_when_evaluating(adapter, params, batch):  # noqa: F811
    spec = dataclasses.replace(SPEC, dropout=0.5)

    def loss(**options):
        return float(gradient_of(adapter, params, batch, **{"lora": spec} | options)[1]["loss"])

    first = loss()
    assert first == loss() != float(gradient_of(adapter, params, batch)[1]["loss"])
    assert len({first, loss(at=1), loss(seed=1), loss(grad_accum=2)}) == 4
    elsewhere = {"mesh": sharding.make_mesh(fsdp=4, tensor=2), "remat": "full"}
    np.testing.assert_allclose(gradient_of(adapter, params, batch, lora=spec, **elsewhere)[1]["loss"], first, rtol=1e-6)
    options = [step.StepOptions(loss_chunk=64, lora=s) for s in (SPEC, spec)]
    sums = [jax.jit(step.make_eval_step(CFG, o))(adapter, batch, params)["nll"] for o in options]
    np.testing.assert_array_equal(*sums)


@pytest.mark.parametrize("kind", ["nf4"])
def test_a_quantised_base_is_trained_on_as_decoded(kind):
    from mmed_jax.model.quantized_base import decoded

    cfg = dataclasses.replace(CFG, hidden_size=64, head_dim=16)
    weights = llama.init_params(cfg, jax.random.key(3))
    spec = lora.LoraSpec(2, 4.0, tuple((t, (2, 2), (4.0, 4.0)) for t in lora.LINEAR_TARGETS))
    fresh = lora.init_adapter(spec, cfg, jax.random.key(4))
    adapter = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), fresh)
    rng = np.random.default_rng(0)
    rows = {k: rng.integers(0, 90, (2, 16)).astype(np.int32) for k in ("tokens", "targets")}
    ones = np.ones((2, 16), np.int32)
    rows |= {"segment_ids": ones, "positions": np.tile(np.arange(16, dtype=np.int32), (2, 1)), "language": ones}
    rows["loss_mask"] = ones.astype(np.float32)
    frozen = quantize_base(weights, kind, jnp.float32)
    results = []
    for base in (frozen, decoded(frozen)):
        options = step.StepOptions(lora=spec, remat="full")
        fn = jax.jit(step.make_train_step(cfg, TX, lambda _: 1.0, options))
        state, metrics = fn(step.init_state(adapter, TX), rows, base)
        results.append((jax.device_get(state["params"]), jax.device_get(metrics)))
    np.testing.assert_allclose(results[0][1]["loss"], results[1][1]["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), results[0][0], results[1][0])


def test_the_state_is_the_adapters_and_the_same_on_every_mesh():
    spec = dataclasses.replace(SPEC, modules=SPEC.modules[:2])
    optimizer = base_config().optim
    optimizer.weight_decay = 0.1
    tx, _ = optim.make_optimizer(optimizer, 10)
    values = []
    for axes in ({"fsdp": 1}, {"fsdp": 4, "tensor": 2}):
        mesh = sharding.make_mesh(**axes, devices=jax.devices()[: int(np.prod(list(axes.values())))])
        abstract = placement.abstract_state(CFG, tx, mesh, "float32", spec)
        assert all(isinstance(x.sharding, NamedSharding) for x in jax.tree.leaves(abstract))
        with jax.set_mesh(mesh):
            frozen = jax.tree.map(
                lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding),
                abstract_base(CFG, "compute", jnp.float32, mesh),
            )
            adapter = placement.fresh_adapter(spec, CFG, 7, abstract, frozen)
            state = placement.fresh_state(adapter, tx, abstract)
        sizes = [x.size for x in jax.tree.leaves(state)]
        assert sum(sizes) < 3.01 * sum(x.size for x in jax.tree.leaves(adapter)) < llama_size()
        values.append(jax.device_get(state["params"]))
    jax.tree.map(np.testing.assert_array_equal, *values)
    a, b = values[0]["layers"]["q"]["lora_a"], values[0]["layers"]["q"]["lora_b"]
    assert a[0].all() and a[1, :2].all() and not a[1, 2:].any() and not b.any()


def llama_size() -> int:
    return sum(x.size for x in jax.tree.leaves(llama.abstract_params(CFG)))


def test_padding_of_smaller_ranks_stays_zero_and_magnitudes_do_not_decay():
    spec = dataclasses.replace(SPEC, modules=SPEC.modules[:1])
    adapter = lora.init_adapter(spec, CFG, jax.random.key(1))
    adapter["layers"]["q"]["magnitude"] = jnp.ones((2, CFG.hidden_size))
    optimizer = base_config().optim
    optimizer.update(lr=1e-2, warmup_ratio=0.0, weight_decay=0.5, schedule="constant")
    tx, _ = optim.make_optimizer(optimizer, 10, b_lr_ratio=4.0)
    mask = optim.decay_mask(adapter)["layers"]["q"]
    assert mask == {"lora_a": True, "lora_b": True, "magnitude": False}
    opt_state = tx.init(adapter)
    rng, given = np.random.default_rng(0), adapter
    for _ in range(3):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), adapter)
        q, keep = grads["layers"]["q"], jnp.asarray(lora.rank_mask(spec, "q"))
        q["lora_a"], q["lora_b"] = q["lora_a"] * keep[..., None], q["lora_b"] * keep[:, None]
        updates, opt_state = tx.update(grads, opt_state, adapter)
        adapter = optax.apply_updates(adapter, updates)
    q = adapter["layers"]["q"]
    assert not np.asarray(q["lora_a"])[1, 2:].any() and not np.asarray(q["lora_b"])[1, :, 2:].any()
    assert np.asarray(q["lora_b"])[:, :, :2].all()
    zero = jax.tree.map(jnp.zeros_like, given)
    still, _ = tx.update(zero, tx.init(given), given)
    assert not np.asarray(still["layers"]["q"]["magnitude"]).any()
    assert np.asarray(still["layers"]["q"]["lora_a"]).any()


def test_lora_plus_moves_b_faster_and_an_embeddings_as_the_rest():
    optimizer = base_config().optim
    optimizer.update(lr=1e-2, warmup_ratio=0.0, schedule="constant", clip_norm=0.0)
    tree = {"layers": {"q": {"lora_a": jnp.ones((1, 2, 3)), "lora_b": jnp.ones((1, 3, 2))}}}
    tree["embed"] = {"lora_a": jnp.ones((2, 5)), "lora_b": jnp.ones((3, 2))}
    moved = []
    for ratio in (1.0, 16.0):
        tx, _ = optim.make_optimizer(optimizer, 10, b_lr_ratio=ratio)
        moved.append(tx.update(tree, tx.init(tree), tree)[0])
    factors = jax.tree.map(lambda a, b: float((b / a).mean()), *moved)
    expected = {"lora_a": 1.0, "lora_b": 16.0}
    assert factors["layers"]["q"] == pytest.approx(expected) and factors["embed"] == pytest.approx(
        {k: 1 for k in expected}
    )


@pytest.mark.parametrize("seq_len, giga", [(2048, 31.88), (8192, 36.71)])
def test_flops_of_llama3_8b(seq_len, giga):
    cfg, config = PRESETS["llama3-8b"], base_config()
    config.lora.rank = 16
    spec = lora.lora_spec(config.lora, cfg)
    assert flops.adapter_matmul_params(spec, cfg) == lora.num_adapter_params(spec, cfg) == 41_943_040
    assert flops.train_flops_per_token(cfg, seq_len, spec) / 1e9 == pytest.approx(giga, abs=0.005)


def test_flops_agree_with_the_compiler():
    """No product for a frozen weight's gradient is in the compiled program; the formula counts what is."""
    cfg = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        tie_word_embeddings=False,
    )
    spec = lora.LoraSpec(8, 8.0, tuple((t, (8,), (8.0,)) for t in lora.LINEAR_TARGETS))
    batch, length = 2, 256  # noqa: F811

    def loss(adapter, base, tokens):  # noqa: F811
        joined = lora.join(base, adapter, spec, cfg)
        hidden = llama.forward(joined, cfg, tokens)
        ones = jnp.ones(tokens.shape)
        return weighted_nll(hidden, base["head"]["weight"], tokens, ones, chunk=batch * length, train_head=False)[0]

    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    arguments = (lora.abstract_adapter(spec, cfg), llama.abstract_params(cfg), tokens)
    counted = jax.jit(jax.grad(loss)).lower(*arguments).compile().cost_analysis()["flops"] / (batch * length)
    # The reference attention works on all pairs; below the first adapter nothing flows: there is no layer under it.
    expected = flops.train_flops_per_token(cfg, length, spec) + 6 * cfg.num_heads * cfg.head_dim * length
    below = 2 * cfg.hidden_size * cfg.head_dim * (cfg.num_heads + 2 * cfg.num_kv_heads)
    assert expected - below < counted + 1e-9 and counted < 1.08 * expected
