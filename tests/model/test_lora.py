"""Low-rank adapters against PEFT (torch, float32) on a tiny Llama: logits, every gradient, merged weights; on meshes,
under every remat policy, packed; what a fresh adapter changes, and what is never computed."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmed_jax.common.errors import UserError
from mmed_jax.model import llama, lora, lora_products
from mmed_jax.model.config import PRESETS
from mmed_jax.parallel import sharding
from mmed_jax.planning.hlo import analysis
from mmed_jax.training.flops import matmul_params
from mmed_jax.training.loss import weighted_nll
from tests.support import lora as support
from tests.support import parity as ph

TINY = ph.TINY | {"rope_scaling": ph.LLAMA3_ROPE, "vocab_size": 96}
CASES = {
    "lora": {},
    "rslora, q and v": {"rslora": True, "rank": 3, "alpha": 5.0, "targets": ("q", "v")},
    "patterns": {
        "rank_pattern": {"layers.1.q": 2, "down": 6, "up": 1},
        "alpha_pattern": {"k": 32.0, "layers.0.down": 3.0},
    },
    "head and embed": {"targets": lora.TARGETS, "rank_pattern": {"head": 5, "embed": 2}},
    "dora": {"dora": True, "layers": (0,), "rank_pattern": {"q": 2}},
    "dora, head and embed": {"targets": lora.TARGETS, "dora": True, "rslora": True},
}
BATCH, LENGTH, SPLIT = 4, 48, 20


def rows(cfg):
    """Tokens and targets [B, T]; every target counts."""
    tokens = ph.random_tokens(cfg, BATCH, LENGTH + 1)
    return tokens[:, :-1], tokens[:, 1:]


@functools.cache
def reference(name):
    """(cfg, base, spec, adapter, logits, gradients of the summed loss) of PEFT, rows being one document each."""
    model, cfg, base, spec, adapter = support.peft_pair(TINY, **CASES[name])
    tokens, targets = rows(cfg)
    logits = model(torch.tensor(tokens)).logits
    loss(logits, targets).backward()
    return cfg, base, spec, adapter, logits.detach().numpy(), support.adapter_tree(spec, cfg, support.gradients(model))


def loss(logits, targets):
    targets = torch.tensor(targets).flatten().long()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")


def summed_loss(adapter, base, spec, cfg, tokens, targets, chunk=50, **kwargs):
    params = lora.join(base, adapter, spec, cfg)
    hidden = llama.forward(params, cfg, tokens, **kwargs)
    extra = {"train_head": False, "adapter": llama.head_adapter(params, hidden)}
    head = llama.head_weight(params, cfg)
    total, _ = weighted_nll(hidden, head, targets, jnp.ones(targets.shape), chunk=chunk, **extra)
    return total, llama.unembed(params, cfg, hidden)


@functools.partial(jax.jit, static_argnums=(2, 3), static_argnames=("remat", "attention"))
def gradients_and_logits(adapter, base, spec, cfg, tokens, targets, **kwargs):
    return jax.grad(summed_loss, has_aux=True)(adapter, base, spec, cfg, tokens, targets, **kwargs)


def assert_same(ours, theirs, tolerance=1e-5):
    """Every leaf within `tolerance` of the largest number in it, which is not 0."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        largest = np.abs(b).max()
        assert largest > 0, path
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * largest, path


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_pefts(name):
    cfg, base, spec, adapter, logits, expected = reference(name)
    tokens, targets = rows(cfg)
    gradients, ours = gradients_and_logits(adapter, base, spec, cfg, tokens, targets)
    assert np.abs(ours - logits).max() <= 1e-5 * np.abs(logits).max()
    # The adapter matters: without it they are far off.
    assert np.abs(ph.logits(base, cfg, tokens) - logits).max() > 0.05 * np.abs(logits).max()
    assert_same(gradients, expected)


REMAT = [("lora", "full"), ("lora", "qkv"), ("lora", "minimal"), ("dora", "minimal_ctx")]


@pytest.mark.parametrize("name, remat", REMAT)
def test_remat_changes_nothing(name, remat):
    cfg, base, spec, adapter, _, expected = reference(name)
    assert_same(gradients_and_logits(adapter, base, spec, cfg, *rows(cfg), remat=remat)[0], expected)


@pytest.mark.parametrize("thin_first", [True, False])
def test_grouped_products_have_the_gradient_of_the_formula(thin_first):
    """Of the input, every A, B and also the weights, with ranks that differ; scales are constants."""
    rng = np.random.default_rng(5)

    def normal(*shape):
        return np.asarray(rng.normal(size=shape), np.float32)

    x, scales = normal(2, 3, 6), [jnp.float32(2.0), jnp.float32(0.5)]
    trees = [normal(4, 6), normal(5, 6)], [normal(2, 6), normal(3, 6)], [normal(4, 2), normal(5, 3)]
    wanted = normal(2, 3, 9)

    def formula(x, ws, a_s, b_s):
        return [x @ w.T + s * x @ a.T @ b.T for w, a, b, s in zip(ws, a_s, b_s, scales, strict=True)]

    def value(products):
        return lambda x, *trees: (jnp.concatenate(products(x, *trees), axis=-1) * wanted).sum()

    grouped = value(lambda x, *trees: lora_products.adapted_linears(thin_first, x, *trees, scales))
    with jax.default_matmul_precision("highest"):
        ours, theirs = (
            jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2, 3)))(x, *trees) for of in (grouped, value(formula))
        )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), ours, theirs)


def test_packed_rows():
    """Rows of two documents of SPLIT and LENGTH - SPLIT tokens, against PEFT on the documents one by one."""
    model, cfg, base, spec, adapter = support.peft_pair(TINY)
    tokens, targets = rows(cfg)
    for part in (slice(SPLIT), slice(SPLIT, None)):
        loss(model(torch.tensor(tokens[:, part])).logits, targets[:, part]).backward()
    expected = support.adapter_tree(spec, cfg, support.gradients(model))
    segments = np.broadcast_to(1 + (np.arange(LENGTH) >= SPLIT), tokens.shape).astype(np.int32)
    positions = (np.arange(LENGTH) - SPLIT * (segments - 1)).astype(np.int32)
    packed = {"segment_ids_bt": jnp.asarray(segments), "positions_bt": jnp.asarray(positions)}
    assert_same(gradients_and_logits(adapter, base, spec, cfg, tokens, targets, remat="full", **packed)[0], expected)


MESHES = [
    ("lora", {"fsdp": 4}),
    ("lora", {"tensor": 2}),
    ("lora", {"fsdp": 2, "tensor": 2}),
    ("dora, head and embed", {"fsdp": 2, "tensor": 2}),
]


@pytest.mark.parametrize("name, sizes", MESHES, ids=str)
def test_meshes_give_the_same(name, sizes):
    cfg, base, spec, adapter, _, expected = reference(name)
    tokens, targets = rows(cfg)
    mesh = sharding.make_mesh(**sizes, devices=jax.devices()[: np.prod(list(sizes.values()))])
    with jax.set_mesh(mesh):
        placed = jax.device_put(adapter, sharding.param_shardings(mesh, lora.logical_axes(spec, cfg)))
        frozen = jax.device_put(base, sharding.param_shardings(mesh, llama.logical_axes(cfg)))
        batch = [jax.device_put(x, NamedSharding(mesh, P("fsdp"))) for x in (tokens, targets)]
        assert_same(gradients_and_logits(placed, frozen, spec, cfg, *batch, remat="full")[0], expected)


def test_a_fresh_adapter_changes_no_bit():
    cfg, base, *_ = reference("lora")
    tokens, _ = rows(cfg)
    plain = ph.logits(base, cfg, tokens)
    spec = lora.lora_spec(support.settings(targets=lora.TARGETS, rank_pattern={"layers.1.q": 2}), cfg)
    adapter = lora.init_adapter(spec, cfg, jax.random.key(0))
    np.testing.assert_array_equal(ph.logits(lora.join(base, adapter, spec, cfg), cfg, tokens), plain)


@pytest.mark.parametrize("name", ["patterns", "head and embed", "dora, head and embed"])
def test_merged_leaves_are_pefts(name):
    """LoRA bit for bit; DoRA but for the order in which squares are summed."""
    model, cfg, base, spec, adapter = support.peft_pair(TINY, **CASES[name])
    merged = ph.to_tree(cfg, model.merge_and_unload().state_dict())
    for target, values in lora.scales(spec).items():
        own, old, new = adapter["layers"], base["layers"], merged["layers"]
        if target not in lora.LINEAR_TARGETS:
            own, old, new = ({target: {k: v[None] for k, v in t[target].items()}} for t in (adapter, base, merged))
        for i, scale in enumerate(values):
            if not scale:
                continue
            a, b, w = own[target]["lora_a"][i], own[target]["lora_b"][i], np.asarray(old[target]["weight"][i])
            magnitude = own[target]["magnitude"][i] if spec.dora else None
            w, expected = (w.T, new[target]["weight"][i].T) if target == "embed" else (w, new[target]["weight"][i])
            ours = lora.merge_leaf(w, a, b, scale, magnitude)
            assert np.abs(ours - w).max() > 1e-3
            if spec.dora:
                np.testing.assert_allclose(ours, expected, rtol=1e-6)
            else:
                np.testing.assert_array_equal(ours, expected)


def test_dropout_is_before_a_in_training_only():
    """Masks differ by layer, module and key; are those of the key again, under remat too; and are none without a key.

    The mean over many keys is the adapter without dropout: what is kept is scaled up.
    """
    cfg, base, spec, adapter, *_ = reference("rslora, q and v")
    spec = dataclasses.replace(spec, dropout=0.25)
    tokens, _ = rows(cfg)

    @functools.partial(jax.jit, static_argnames="remat")
    def hidden(key, remat="none"):
        return llama.forward(lora.join(base, adapter, spec, cfg, dropout_key=key), cfg, tokens, remat=remat)

    first, again, other = (hidden(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    joined = lora.join(base, adapter, spec, cfg, dropout_key=jax.random.key(0))
    keys = [jax.random.key_data(joined["layers"][t]["lora_dropout"]["key"]) for t in ("q", "v")]
    assert len({tuple(k) for k in np.concatenate(keys).tolist()}) == 2 * cfg.num_layers
    assert "lora_dropout" not in lora.join(base, adapter, spec, cfg)["layers"]["q"]

    module = jax.tree.map(lambda x: x[0], joined["layers"]["q"])
    x = jnp.ones((64, 200, cfg.hidden_size))
    (dropped,) = lora_products.linears(x, [module], [module["weight"]])
    del module["lora_dropout"]
    (plain,) = lora_products.linears(x, [module], [module["weight"]])
    change = np.asarray(dropped - plain)
    assert np.abs(change).max() > 0.05
    np.testing.assert_allclose(change.mean(axis=(0, 1)), 0, atol=6 * change.std() / np.sqrt(64 * 200))


REFUSED = {
    "config.lora.targets: no module is called 'wq'": {"targets": ("wq",)},
    "did you mean 'gate'": {"targets": ("gates",)},
    "config.lora.layers: there is no layer 2; the model has 0 to 1": {"layers": (0, 2)},
    "'layers.1.q' is no module with an adapter": {"layers": (0,), "rank_pattern": {"layers.1.q": 2}},
    "'up' is no module with an adapter": {"targets": ("q",), "alpha_pattern": {"up": 2}},
    "q=0: must be a number above 0": {"rank_pattern": {"q": 0}},
    "q=2.5: a rank is a whole number": {"rank_pattern": {"q": 2.5}},
    "config.lora.targets is empty": {"targets": ()},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_matches_nothing_is_refused(message):
    with pytest.raises(UserError, match=re.escape(message)):
        lora.lora_spec(support.settings(**REFUSED[message]), ph.tiny_config())


@pytest.mark.parametrize("target", ["head", "embed"])
def test_head_and_embedding_of_a_tied_model_are_refused(target):
    with pytest.raises(UserError, match="one matrix with the"):
        lora.lora_spec(support.settings(targets=("q", target)), ph.tiny_config(tie_word_embeddings=True))


def test_specs_by_hand():
    cfg = ph.tiny_config()
    assert lora.lora_spec(support.settings(rank=0), cfg) is None
    changes = {"targets": ("v", "q"), "layers": (1,), "rank_pattern": {"layers.1.q": 16}, "alpha_pattern": {"v": 1.5}}
    spec = lora.lora_spec(support.settings(**changes), cfg)
    assert spec.modules == (("q", (0, 16), (0.0, 8.0)), ("v", (0, 4), (0.0, 1.5)))
    assert lora.LoraSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec and hash(spec)
    np.testing.assert_array_equal(lora.scales(spec)["q"], np.float32([0, 0.5]))
    np.testing.assert_array_equal(lora.scales(dataclasses.replace(spec, rslora=True))["q"], np.float32([0, 2.0]))
    assert lora.num_adapter_params(spec, cfg) == 16 * (48 + 64) + 4 * (48 + 32)
    # 8B at rank 16, as published.
    big = lora.lora_spec(support.settings(rank=16), PRESETS["llama3-8b"])
    assert lora.num_adapter_params(big, PRESETS["llama3-8b"]) == 41_943_040


def test_ranks_that_are_filled_up_stay_zero():
    """After five clipped AdamW steps with decay, rows of A and columns of B behind a layer's rank are exactly 0."""
    cfg, base, spec, adapter, *_ = reference("patterns")
    tokens, targets = rows(cfg)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.1))
    state, new = tx.init(adapter), adapter

    @jax.jit
    def moved(gradients, state, new):
        updates, state = tx.update(gradients, state, new)
        return optax.apply_updates(new, updates), state

    for _ in range(5):
        new, state = moved(gradients_and_logits(new, base, spec, cfg, tokens, targets)[0], state, new)
    new = jax.device_get(new)
    assert not np.allclose(new["layers"]["q"]["lora_a"][0], adapter["layers"]["q"]["lora_a"][0], atol=1e-3)
    for target, _, _ in spec.modules:
        leaves, behind = new["layers"][target], 1 - lora.rank_mask(spec, target)
        assert target != "q" or behind.any()
        assert not (leaves["lora_a"] * behind[:, :, None]).any() and not (leaves["lora_b"] * behind[:, None, :]).any()


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 4}], ids=str)
def test_of_frozen_weights_there_is_no_gradient_and_no_copy(sizes):
    """The compiled gradient, a device: full fine-tuning's products but those of the weights' gradients (a third of
    them), and six a trained number; temporary memory without anything of the size of the weights."""
    cfg = dataclasses.replace(ph.tiny_config(), num_layers=16, hidden_size=256, intermediate_size=512, vocab_size=96)
    spec = lora.lora_spec(support.settings(), cfg)
    mesh = sharding.make_mesh(**{"fsdp": 1} | sizes, devices=jax.devices()[: np.prod(list(sizes.values()), dtype=int)])

    def shaped(tree, axes):
        shardings = sharding.param_shardings(mesh, axes)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

    base = shaped(llama.abstract_params(cfg), llama.logical_axes(cfg))
    adapter = shaped(lora.abstract_adapter(spec, cfg), lora.logical_axes(spec, cfg))
    tokens = jax.ShapeDtypeStruct((4, 8), jnp.int32, sharding=sharding.batch_sharding(mesh))

    def full(base, tokens):
        head = llama.head_weight(base, cfg)
        return weighted_nll(llama.forward(base, cfg, tokens, remat="full"), head, tokens, jnp.ones(tokens.shape))[0]

    def adapted(adapter, base, tokens):
        return summed_loss(adapter, base, spec, cfg, tokens, tokens, chunk=1024, remat="full")[0]

    with jax.set_mesh(mesh):
        results = []
        for function, args in ((full, (base, tokens)), (adapted, (adapter, base, tokens))):
            placed = jax.tree.map(lambda x: x.sharding, args[0])
            compiled = jax.jit(jax.grad(function), out_shardings=placed).lower(*args).compile()
            products = analysis.flops(analysis.parse_module(compiled.as_text())).total
            results.append((products * mesh.size, compiled.memory_analysis()))
    (all_products, _), (products, memory) = results
    # Two products of each adapter forward, most of them once more (remat), and four backward.
    frozen, trained = (2 * n * tokens.size for n in (matmul_params(cfg), lora.num_adapter_params(spec, cfg)))
    assert 3 * trained <= products - (all_products - frozen) <= 4.01 * trained
    nbytes = sum(x.size * 4 for x in jax.tree.leaves(base)) / mesh.size
    assert memory.temp_size_in_bytes < 0.5 * nbytes
    arguments = nbytes + 4 * lora.num_adapter_params(spec, cfg)
    assert nbytes < memory.argument_size_in_bytes < 1.05 * arguments
