"""The generation engine: equal to recomputation and to transformers, whatever the batch; sampling distributions."""

import dataclasses
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.hf.open_model import open_model
from mmed_jax.inference import steps as programs
from mmed_jax.inference.engine import Completion, Engine, check_prompts
from mmed_jax.inference.sampling import Sampling, row_keys, sample
from mmed_jax.inference.slots import size_class
from mmed_jax.model import llama
from mmed_jax.parallel.sharding import make_mesh, param_shardings
from tests.support.hf_folders import hf_folder

LENGTHS = (3, 17, 64, 1, 65, 90, 5, 130)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Hugging Face model written by transformers: grouped heads, llama3 scaling, 256 positions."""
    return hf_folder(tmp_path_factory.mktemp("engine") / "model")


@pytest.fixture(scope="module")
def model(folder):
    source = open_model(folder)
    return source.load_params(), source.cfg


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, n).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def engine(model):
    return Engine(*model, max_batch=4)


@pytest.fixture(scope="module")
def greedy(engine, prompts):
    return [c.ids for c in engine.generate(prompts, max_new_tokens=64)]


def test_cached_decode_equals_full_recompute(model, prompts, greedy):
    """Every generated token is the argmax of a forward pass over all tokens before it, without a cache."""
    params, cfg = model
    rows = [p + g for p, g in zip(prompts, greedy)]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    best = jax.jit(lambda t: jnp.argmax(llama.unembed(params, cfg, llama.forward(params, cfg, t)), -1))(tokens)
    for i, (p, g) in enumerate(zip(prompts, greedy)):
        assert len(g) == 64
        np.testing.assert_array_equal(best[i, len(p) - 1 : len(p) + 63], g)


def test_greedy_64_tokens_equal_transformers(folder, prompts, greedy):
    import torch
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(folder)
    for prompt, ours in zip(prompts[::2], greedy[::2]):
        ids = torch.tensor([prompt])
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, eos_token_id=None
        )
        assert out[0, len(prompt) :].tolist() == ours


@pytest.mark.parametrize(
    ("settings", "sizes"), [({}, (1, 8)), ({"temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": 7}, (1,))]
)
def test_batch_size_order_and_refill_change_nothing(model, engine, prompts, settings, sizes):
    """Four rows that are refilled, one row, eight rows, reversed order: the same tokens, greedy and sampled."""
    want = [c.ids for c in engine.generate(prompts, max_new_tokens=24, **settings)]
    assert len({tuple(w) for w in want}) == len(want)
    for batch in sizes:
        other = Engine(*model, max_batch=batch).generate(prompts, max_new_tokens=24, **settings)
        assert [c.ids for c in other] == want
    numbers = list(range(len(prompts)))[::-1]
    back = engine.generate(prompts[::-1], max_new_tokens=24, items=numbers, **settings)
    assert [c.ids for c in back] == want[::-1]
    part = engine.generate(prompts[4:], max_new_tokens=24, items=[4, 5, 6, 7], **settings)
    assert [c.ids for c in part] == want[4:]


def test_seed_and_item_decide_the_draws(engine, prompts):
    same = [prompts[0]] * 4
    how = {"max_new_tokens": 16, "temperature": 1.0}
    a = [c.ids for c in engine.generate(same, seed=0, **how)]
    assert a[0] != a[1] and a[1] != a[2]
    assert [c.ids for c in engine.generate(same, seed=0, **how)] == a
    assert [c.ids for c in engine.generate(same, seed=1, **how)] != a


def test_mesh_changes_nothing(model, prompts, greedy):
    params, cfg = model
    mesh = make_mesh(fsdp=4, tensor=2)
    placed = jax.tree.map(jax.device_put, params, param_shardings(mesh, llama.logical_axes(cfg)))
    out = Engine(placed, cfg, mesh=mesh, max_batch=4).generate(prompts, max_new_tokens=64)
    assert [c.ids for c in out] == greedy


def test_a_cache_that_is_kept_changes_no_answer(model, monkeypatch):
    """Turns that go on, break off, are stopped, lose their beginning: as a fresh read. A longer one takes its place."""
    params, cfg = model[0], dataclasses.replace(model[1], max_position_embeddings=512)
    kept, anew = Engine(params, cfg, max_batch=1), Engine(params, cfg, max_batch=1)
    text = np.random.default_rng(2).integers(0, 256, 400).tolist()

    def break_off(*_):
        raise KeyboardInterrupt

    turns = [text[:70], text[:200], text[64:230], text[:300]]
    prefill, held, freed = programs.prefill, [], []

    def note_and_prefill(*args, **static):
        freed.append([cache() is None for cache in held])
        return prefill(*args, **static)

    for turn in turns:
        held[:] = [weakref.ref(x) for x in jax.tree.leaves(kept._kept.cache)[:1]] if kept._kept else []
        with monkeypatch.context() as patched:
            patched.setattr(programs, "prefill", note_and_prefill)
            answer = kept.generate([turn], max_new_tokens=9, keep=True)
        assert answer == anew.generate([turn], max_new_tokens=9)
        if turn is turns[1]:
            with pytest.raises(KeyboardInterrupt):
                kept.generate([text[:210]], max_new_tokens=9, keep=True, on_token=break_off)
            stopped = kept.generate([text[:210]], max_new_tokens=9, keep=True, on_token=lambda *_: True)
            assert stopped[0].finish_reason == "stopped" and len(stopped[0].ids) == 1
    assert freed == [[], [False], [False], [True]]  # the last one is longer: 384 slots
    with pytest.raises(UserError):
        kept.generate([text * 2], max_new_tokens=1, keep=True)
    assert kept._kept is not None  # what is refused costs nothing


def test_stop_ids_end_the_row_and_are_left_out(model, prompts, greedy):
    stops = (greedy[0][10], greedy[5][3])
    out = Engine(*model, max_batch=4, stop_ids=stops).generate(prompts, max_new_tokens=64)
    stopped = 0
    for c, full in zip(out, greedy):
        at = next((i for i, t in enumerate(full) if t in stops), None)
        assert c == (Completion(full, "length") if at is None else Completion(full[:at], "stop"))
        stopped += at is not None
    assert stopped >= 2


def test_free_rows_are_refilled_at_once(model, engine, monkeypatch):
    """Rows that end early are taken by the next prompts: fewer steps than in batches that wait for their longest."""
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, 256, 6).tolist() for _ in range(12)]
    full = [c.ids for c in engine.generate(prompts, max_new_tokens=60)]
    stops = sorted({full[i][3] for i in range(0, 12, 3)})
    steps = []
    inner = programs.decode

    def counting(*args, **kwargs):
        cache, out, bad = inner(*args, **kwargs)
        steps.append(int((np.asarray(out) >= 0).any(1).sum()))
        return cache, out, bad

    monkeypatch.setattr(programs, "decode", counting)
    out = Engine(*model, max_batch=4, stop_ids=stops).generate(prompts, max_new_tokens=60)
    lengths = [len(c.ids) + (c.finish_reason == "stop") - 1 for c in out]  # the first token comes from the prompt
    waiting = sum(max(lengths[i : i + 4]) for i in range(0, 12, 4))
    assert -(-sum(lengths) // 4) <= sum(steps) < 0.8 * waiting


def test_callbacks(engine, prompts, greedy):
    seen, done = {}, {}
    out = engine.generate(
        prompts[:4],
        max_new_tokens=5,
        on_token=lambda i, t: seen.setdefault(i, []).append(t),
        on_done=lambda i, c: done.setdefault(i, c),
    )
    assert [seen[i] for i in range(4)] == [g[:5] for g in greedy[:4]]
    assert [done[i] for i in range(4)] == out == [Completion(g[:5], "length") for g in greedy[:4]]


def test_one_new_token(engine, prompts, greedy):
    assert [c.ids for c in engine.generate(prompts, max_new_tokens=1)] == [g[:1] for g in greedy]
    assert engine.generate([], max_new_tokens=1) == []


def test_a_limit_for_each_prompt(engine, prompts, greedy):
    limits = [1, 30, 2, 64, 7, 3, 11, 5]
    out = engine.generate(prompts, max_new_tokens=limits)
    assert [c.ids for c in out] == [g[:n] for g, n in zip(greedy, limits)]
    for wrong, message in (([1, 2], "8 prompts and max_new_tokens for 2"), ([1] * 7 + [0], "max_new_tokens=0")):
        with pytest.raises(UserError, match=message):
            engine.generate(prompts, max_new_tokens=wrong)


def test_layers_in_a_loop_or_one_by_one(model, prompts, greedy):
    """Stacked layers, as on accelerators, and a list of them, as on a CPU; and weights that the engine may delete."""
    params, cfg = model
    assert isinstance(params["layers"], dict)
    scored = []
    for unroll in (False, True):
        engine = Engine(params, cfg, max_batch=4, unroll=unroll)
        assert isinstance(engine.params["layers"], list) == unroll
        assert [c.ids for c in engine.generate(prompts, max_new_tokens=64)] == greedy
        scored.append(engine.loglikelihood(prompts, [[g[:1], g[:3]] for g in greedy]))
    np.testing.assert_allclose(*scored, atol=2e-5)
    own = jax.tree.map(jnp.copy, params)
    engine = Engine(own, cfg, max_batch=4, unroll=True, owned=True)
    assert all(x.is_deleted() for x in jax.tree.leaves(own["layers"]))
    assert [c.ids for c in engine.generate(prompts[:2], max_new_tokens=8)] == [g[:8] for g in greedy[:2]]


def test_model_positions_are_the_limit(engine):
    """A row is cut where the model's positions end; a prompt that leaves no room is refused, with its name."""
    prompt = list(range(250))
    assert len(engine.generate([prompt], max_new_tokens=64)[0].ids) == 6
    with pytest.raises(UserError, match=r"q7: has 256 tokens.*max_position_embeddings is 256"):
        check_prompts(engine.cfg, [[1], [1] * 256], 8, names=["q6", "q7"])
    with pytest.raises(UserError, match="prompt 2: is empty"):
        engine.generate([[1], []], max_new_tokens=3)
    with pytest.raises(UserError, match="max_new_tokens=0"):
        engine.generate([[1]], max_new_tokens=0)
    for seed in (-1, 2**32, 10**30):  # a key has 32 bits: others would draw like a smaller seed, or fail
        with pytest.raises(UserError, match=f"seed={seed}"):
            engine.generate([[1]], max_new_tokens=1, temperature=1.0, seed=seed)


def test_few_programs_for_many_lengths(model):
    """Whatever the prompts' lengths, one pair of programs as long as everything fits into the smallest cache."""
    engine = Engine(*model, max_batch=5)
    before = programs.prefill._cache_size(), programs.decode._cache_size()
    for n in (65, 100, 128, 150, 190, 240):
        engine.generate([[1] * n, [2] * (n - 3), [3] * 70] * 3, max_new_tokens=9)
    assert (programs.prefill._cache_size() - before[0], programs.decode._cache_size() - before[1]) == (1, 1)


def test_bfloat16_keeps_norms(model):
    params, cfg = model
    engine = Engine(params, cfg, compute_dtype="bfloat16", max_batch=1)
    for layer in engine.params["layers"]:
        assert layer["q"]["weight_io"].dtype == jnp.bfloat16 and layer["attn_norm"]["weight"].dtype == jnp.float32
    assert len(engine.generate([[1, 2, 3]], max_new_tokens=4)[0].ids) == 4


def test_nan_weights_are_an_error(model):
    params, cfg = model
    broken = {**params, "final_norm": {"weight": params["final_norm"]["weight"] * jnp.nan}}
    with pytest.raises(WorkError, match="NaN"):
        Engine(broken, cfg, max_batch=1).generate([[1, 2]], max_new_tokens=4)


def test_size_classes():
    sizes = [size_class(n) for n in range(1, 9000)]
    assert all(s >= n for n, s in enumerate(sizes, 1)) and sizes == sorted(sizes)
    assert all(s <= 2 * n for n, s in enumerate(sizes, 1) if n > 128) and len(set(sizes)) == 12
    assert all(s % 128 == 0 for s in sizes)


# ---- Sampling -----------------------------------------------------------------------------------------------------

PROBS = np.array([0.4, 0.05, 0.25, 0.2, 0.1])
ROWS = 20000


def draw(temperature=1.0, top_p=1.0, top_k=0, probs=PROBS):
    """Shares of each token in ROWS draws with keys of their own."""
    keys = row_keys(jax.random.key(3), jnp.arange(ROWS) % 100, jnp.arange(ROWS) // 100)
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probs, jnp.float32)), (ROWS, len(probs)))
    kind = Sampling(temperature, top_p, top_k).kind
    drawn = jax.jit(sample, static_argnames="kind")(logits, keys, temperature, top_p, top_k, kind=kind)
    return np.bincount(np.asarray(drawn), minlength=len(probs)) / ROWS


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBS),
        ({"temperature": 0.5}, PROBS**2 / (PROBS**2).sum()),
        ({"temperature": 2.0}, PROBS**0.5 / (PROBS**0.5).sum()),
        ({"top_k": 1}, [1, 0, 0, 0, 0]),
        ({"top_k": 3}, np.array([0.4, 0, 0.25, 0.2, 0]) / 0.85),
        ({"top_k": 99}, PROBS),
        # the run of most likely tokens that reaches top_p: 0.4, 0.65, 0.85, 0.95, 1
        ({"top_p": 0.0}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.39}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.41}, np.array([0.4, 0, 0.25, 0, 0]) / 0.65),
        ({"top_p": 0.64}, np.array([0.4, 0, 0.25, 0, 0]) / 0.65),
        ({"top_p": 0.9}, np.array([0.4, 0, 0.25, 0.2, 0.1]) / 0.95),
        ({"top_p": 1.0}, PROBS),
        # top_p sees what top_k left: 0.4/0.65 = 0.615 reaches 0.6
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0, 0]),
        # and what the temperature made: 0.16/0.275 = 0.58 of the squares
        ({"temperature": 0.5, "top_p": 0.57}, [1, 0, 0, 0, 0]),
    ],
)
def test_distribution(settings, expected):
    """Chi-square against the exact distribution, and nothing outside of it."""
    got, expected = draw(**settings), np.asarray(expected, float)
    assert (got[expected == 0] == 0).all()
    inside = expected > 0
    chi2 = ROWS * ((got - expected)[inside] ** 2 / expected[inside]).sum()
    assert chi2 < 18.5  # 99.9 % for 4 degrees of freedom


def test_ties_and_vocabulary_sized_top_p():
    """Of equal logits the lower id ranks first; top_p just below 1 cuts the tail of a large vocabulary only."""
    assert (draw(top_k=2, probs=np.full(4, 0.25)) > 0).tolist() == [True, True, False, False]
    vocab = 5000
    logits = jnp.log(jnp.arange(vocab, 0, -1, dtype=jnp.float32))[None].repeat(200, 0)
    keys = row_keys(jax.random.key(0), jnp.arange(200), jnp.arange(200))
    mass = np.cumsum(np.arange(vocab, 0, -1) / (vocab * (vocab + 1) / 2))
    drawn = np.asarray(jax.jit(sample, static_argnames="kind")(logits, keys, 1.0, 0.5, 0, kind="filtered"))
    assert drawn.max() <= np.searchsorted(mass, 0.5) + 1 and drawn.max() > vocab // 10


def test_greedy_takes_the_first_maximum():
    logits = jnp.asarray([[0.0, 2.0, 2.0, 1.0], [-1.0, -5.0, -2.0, -1.0]])
    assert sample(logits, None).tolist() == [1, 0]
    assert dataclasses.astuple(Sampling()) == (0.0, 1.0, 0) and Sampling(0.0, 0.5, 3).kind == "greedy"


BAD = [
    {"temperature": -1},
    {"temperature": float("nan")},
    {"temperature": 1e-60},
    {"temperature": 1e300},
    {"top_p": 1.1},
    {"top_k": -1},
    {"top_k": 2**31},
]


@pytest.mark.parametrize("bad", BAD)
def test_senseless_settings(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)
