"""Log-likelihoods of the engine: equal to transformers, whatever the batch; prompts that begin alike."""

import jax
import numpy as np
import pytest

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.hf.open_model import open_model
from mmed_jax.inference import slots, steps
from mmed_jax.inference.engine import Engine
from mmed_jax.model import llama
from mmed_jax.parallel.sharding import make_mesh, param_shardings
from tests.support.hf_folders import hf_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Hugging Face model: grouped heads, 512 positions."""
    return hf_folder(tmp_path_factory.mktemp("scoring") / "model", max_position_embeddings=512)


@pytest.fixture(scope="module")
def model(folder):
    source = open_model(folder)
    return source.load_params(), source.cfg


@pytest.fixture(scope="module")
def few_shot():
    """Nine prompts behind two beginnings of 150 and 201 tokens, and three of their own; choices of 1 to 20 tokens.

    Those of a prompt have up to 16 tokens or 33 to 64: two widths, of the programs that are compiled for each batch.
    """
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, 256, n).tolist()  # noqa: E731
    a, b = draw(150), draw(201)
    prompts = [[*(a, b)[i % 2], *draw(int(n))] for i, n in enumerate(rng.integers(3, 120, 9))]
    prompts += [draw(n) for n in (1, 64, 65)]
    lengths = [(5, 3, 15, 5, 11), (9,), (16, 8, 20), (6,), (20, 7, 11, 5), (5, 10), (17, 11, 6, 20), (16, 20)]
    lengths += [(4, 8, 15, 9), (8, 13, 9, 1, 7), (2, 1, 4), (7, 5)]
    choices = [[draw(n) for n in of] for of in lengths]
    return prompts, choices


@pytest.fixture(scope="module")
def together(model, few_shot):
    return Engine(*model, max_batch=8).loglikelihood(*few_shot)


def flat(values):
    return np.concatenate([np.asarray(v) for v in values])


def test_equal_transformers(folder, few_shot, together):
    """Sums of log-softmax over the tokens of each choice behind its prompt, one forward pass each."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt, choices, values in zip(*few_shot, together):
        assert len(values) == len(choices)
        for choice, value in zip(choices, values):
            with torch.no_grad():
                logp = theirs(torch.tensor([[*prompt, *choice]])).logits[0].log_softmax(-1)
            expected = sum(float(logp[len(prompt) + k - 1, t]) for k, t in enumerate(choice))
            assert value == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("batch", [1, 16])
def test_batch_and_order_change_nothing(model, few_shot, together, batch):
    """`together` has 8. The tests below take 1 and 16, which are compiled by then."""
    engine = Engine(*model, max_batch=batch)
    seen = {}
    turned = engine.loglikelihood(*(x[::-1] for x in few_shot), on_done=lambda i, v: seen.update({i: v}))
    assert [seen[i] for i in range(len(turned))] == turned
    np.testing.assert_allclose(flat(turned[::-1]), flat(together), rtol=1e-6, atol=2e-5)


def test_alone_in_a_batch_of_many_rows_the_values_are_the_same(model, few_shot, together):
    engine = Engine(*model, max_batch=16)
    alone = [engine.loglikelihood([p], [c])[0] for p, c in zip(*few_shot)]
    np.testing.assert_allclose(flat(alone), flat(together), rtol=1e-6, atol=2e-5)


def test_mesh_changes_nothing(model, few_shot, together):
    params, cfg = model
    mesh = make_mesh(fsdp=4, tensor=2)
    placed = jax.tree.map(jax.device_put, params, param_shardings(mesh, llama.logical_axes(cfg)))
    out = Engine(placed, cfg, mesh=mesh, max_batch=8).loglikelihood(*few_shot)
    np.testing.assert_allclose(flat(out), flat(together), rtol=1e-6, atol=2e-5)


def test_letters_need_no_pass_of_their_own(model, few_shot):
    """Choices of one token come from the prompt alone, with the values that longer ones have as their first token."""
    engine = Engine(*model, max_batch=16)
    prompts = few_shot[0]
    letters = engine.loglikelihood(prompts, [[[5], [6], [7]]] * len(prompts))
    beside = engine.loglikelihood(prompts, [[[5], [6], [7], [8, 9]]] * len(prompts))
    np.testing.assert_allclose(flat(letters), flat([v[:3] for v in beside]), rtol=1e-6, atol=2e-5)


def test_choices_do_not_see_each_other(model, few_shot, together):
    """A choice has the value it has alone; a thousand of them in one row change nothing."""
    engine = Engine(*model, max_batch=16)
    prompts, choices = few_shot
    apart = [[engine.loglikelihood([p], [[c]])[0][0] for c in of] for p, of in zip(prompts[:3], choices[:3])]
    np.testing.assert_allclose(flat(apart), flat(together[:3]), rtol=1e-6, atol=2e-5)
    # All rows of a batch are computed, also those without a prompt: for 4,060 tokens of choices, one row.
    many = Engine(*model, max_batch=1).loglikelihood([prompts[10]], [choices[10] * 580])[0]
    np.testing.assert_allclose(many, list(together[10]) * 580, rtol=1e-6, atol=2e-5)


def counted(monkeypatch, name):
    """Chunks of prompts that each call of a program reads."""
    inner, chunks = getattr(steps, name), []

    def counting(params, cache, entry, *args, **kwargs):
        chunks.append(-(-int(entry["lengths_g"].max()) // kwargs["chunk"]) - int(entry["start"]) // kwargs["chunk"])
        return inner(params, cache, entry, *args, **kwargs)

    monkeypatch.setattr(steps, name, counting)
    return chunks


@pytest.mark.parametrize("name", ["prefill", "score"])
def test_beginnings_are_read_once(model, monkeypatch, name):
    """Twelve questions behind the same 320 tokens: five chunks once, then one a group; the same results as without."""
    rng = np.random.default_rng(3)
    shots = rng.integers(0, 256, 5 * slots.CHUNK_CPU).tolist()
    prompts = [[*shots, *rng.integers(0, 256, 20 + i).tolist()] for i in range(12)]
    engine = Engine(*model, max_batch=8)

    def ask():
        if name == "score":
            return flat(engine.loglikelihood(prompts, [[[1], [2, 3]]] * 12))
        return [c.ids for c in engine.generate(prompts, max_new_tokens=12)]

    with monkeypatch.context() as m:
        m.setattr(slots.CacheRows, "_shared", lambda self, prompt, held: 0)
        plain = counted(m, name)
        want = ask()
    assert sum(plain) == 6 * 6
    chunks = counted(monkeypatch, name)
    got = ask()
    assert chunks == [6, 1, 1, 1, 1, 1]
    if name == "score":
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=2e-5)
    else:
        assert got == want


def test_generation_behind_few_shot_prompts(model, few_shot):
    """The same answers for any number of rows and any order, with beginnings copied from rows that still run."""
    prompts = few_shot[0]
    engine = Engine(*model, max_batch=1)
    want = [c.ids for p in prompts for c in engine.generate([p], max_new_tokens=24)]
    for batch in (3, 8):
        engine = Engine(*model, max_batch=batch)
        assert [c.ids for c in engine.generate(prompts, max_new_tokens=24)] == want
        assert [c.ids for c in engine.generate(prompts[::-1], max_new_tokens=24)] == want[::-1]


def test_the_same_prompt_many_times(model, few_shot):
    """Whole chunks of a prompt are taken from itself; its last token is read each time."""
    engine = Engine(*model, max_batch=4)
    for prompt in (few_shot[0][10], few_shot[0][11], few_shot[0][0]):
        out = engine.generate([prompt] * 9, max_new_tokens=5)
        assert len({tuple(c.ids) for c in out}) == 1 and len(out[0].ids) == 5


def test_wrong_choices(model):
    engine = Engine(*model, max_batch=1)
    assert engine.loglikelihood([], []) == []
    for prompts, choices, message in (
        ([[1], [2]], [[[1]]], "2 prompts and choices for 1"),
        ([[1]], [[]], "prompt 1: has no choices, or an empty"),
        ([[1]], [[[1], []]], "prompt 1: has no choices, or an empty one"),
        ([[]], [[[1]]], "prompt 1: is empty"),
        ([[1], [1] * 510], [[[1]], [[1] * 4]], r"prompt 2: has 510 tokens and a choice of 4, and .* is 512"),
    ):
        with pytest.raises(UserError, match=message):
            engine.loglikelihood(prompts, choices)
    assert len(engine.loglikelihood([[1] * 510], [[[1] * 3]])[0]) == 1


def test_nan_weights_are_an_error(model):
    params, cfg = model
    broken = {**params, "final_norm": {"weight": params["final_norm"]["weight"] * np.nan}}
    with pytest.raises(WorkError, match="NaN"):
        Engine(broken, cfg, max_batch=1).loglikelihood([[1, 2]], [[[3], [4, 5]]])
