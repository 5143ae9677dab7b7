"""mmed_jax.Llama: the model as a Flax module whose weights are the only copy, for calls, answers, training, saving."""

import gc
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmed_jax import Llama
from mmed_jax.common.errors import UserError
from mmed_jax.hf.open_model import open_model
from mmed_jax.model import llama
from mmed_jax.parallel.sharding import make_mesh
from tests.support.hf_folders import hf_folder

QUESTION = "Which vitamin prevents scurvy?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("pretrained") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return Llama.from_pretrained(folder)


def same_arrays(a, b):
    """Whether two trees hold the very same device buffers."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return all(x.unsafe_buffer_pointer() == y.unsafe_buffer_pointer() for x, y in pairs)


def live_bytes(cfg):
    """Bytes of the buffers on the devices that have the shape of one of the model's parameters; aliases count once."""
    shapes = {x.shape for x in jax.tree.leaves(llama.abstract_params(cfg))}
    return sum({x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays() if x.shape in shapes}.values())


def test_it_is_the_module_of_the_plain_tree(model, folder):
    source = open_model(folder)
    params = source.load_params(dtype="float32")
    assert jax.tree.map(lambda a, b: bool((a == b).all()), model.params, params) == jax.tree.map(lambda _: True, params)
    tokens = np.arange(24).reshape(2, 12)
    expected = llama.unembed(params, source.cfg, llama.forward(params, source.cfg, jnp.asarray(tokens)))
    logits = model(tokens)
    assert logits.dtype == jnp.float32 and logits.shape == (2, 12, source.cfg.vocab_size)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert model.dtype == jnp.float32 and model.layers.q.weight.get_metadata("out_sharding")


def test_segments_of_a_row_cannot_see_each_other(model):
    tokens = np.arange(10)[None]
    packed = model(
        tokens,
        positions_bt=jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]),
        segment_ids_bt=jnp.array([[1] * 4 + [2] * 6]),
    )
    np.testing.assert_allclose(packed[:, 4:], model(tokens[:, 4:]), atol=1e-5)


def test_the_weights_exist_once(folder):
    gc.collect()
    before = live_bytes(open_model(folder).cfg)
    model = Llama.from_pretrained(folder)
    once = live_bytes(model.cfg) - before
    assert once == sum(x.nbytes for x in jax.tree.leaves(model.params))
    engine = model.engine()
    assert same_arrays(engine.params, model.params)
    model(np.arange(8)[None])
    model.generate(QUESTION, max_new_tokens=4)
    assert live_bytes(model.cfg) - before == once


def test_an_engine_that_takes_the_weights_leaves_no_second_copy(folder):
    """As the generate and evaluate commands load it; on a CPU the layers are laid out anew and the old ones deleted."""
    model = Llama.from_pretrained(folder)
    expected = model.generate(QUESTION, max_new_tokens=8)
    stacked = jax.tree.leaves(model.params["layers"])
    engine = model.engine(release=True)
    assert all(x.is_deleted() for x in stacked)
    assert same_arrays(engine.params["embed"], model.params["embed"])
    tok = model.tokenizer
    ids = tok.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)["input_ids"]
    answer = engine.generate([ids], max_new_tokens=8)[0].ids
    assert tok.decode(answer, skip_special_tokens=True) == expected


def test_generate_takes_a_question_messages_a_record_or_several(model):
    settings = {"max_new_tokens": 6}
    answer = model.generate(QUESTION, **settings)
    messages = [{"role": "user", "content": QUESTION}]
    record = {"question": "q?", "options": {"A": "a", "B": "b"}, "answer_idx": "A"}
    assert isinstance(answer, str) and model.generate(messages, **settings) == answer
    answers = model.generate([QUESTION, messages, record], **settings)
    assert answers[:2] == [answer, answer] and len(answers) == 3
    assert model.generate(record, **settings) == answers[2]
    assert model.generate(QUESTION, raw=True, **settings) != answer
    assert model.generate(QUESTION, system="Answer in one word.", **settings) != answer
    with pytest.raises(UserError, match="prompt 2: field 'prompt'"):
        model.generate([QUESTION, " "])


@pytest.mark.parametrize("dtype", [None, "bfloat16", "source"])
def test_what_is_saved_is_what_is_held(folder, tmp_path, dtype):
    model = Llama.from_pretrained(folder, dtype=dtype)
    kept = model.params
    out = model.save_pretrained(tmp_path / "copy")
    assert same_arrays(kept, model.params)
    again = Llama.from_pretrained(out, dtype="source")
    assert again.dtype == model.dtype
    np.testing.assert_array_equal(again(np.arange(9)[None]), model(np.arange(9)[None]))
    assert json.loads((out / "mmed_jax_export.json").read_text())["made_by"] == "mmed_jax.Llama"
    with pytest.raises(UserError, match="earlier export"):
        model.save_pretrained(tmp_path / "copy")


def test_it_is_an_ordinary_flax_module(folder):
    """jit, gradients and an optimizer of Flax; new weights are put in place with nnx.update, without a copy."""
    model = Llama.from_pretrained(folder)
    tokens = jnp.arange(16)[None]

    def loss(model):
        logp = jax.nn.log_softmax(model(tokens[:, :-1]))
        return -jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean()

    jitted = nnx.jit(loss)
    first = float(jitted(model))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(loss)(model))
    assert float(jitted(model)) < first
    params = jax.tree.map(lambda x: x * 0, model.params)
    nnx.update(model, params)
    assert same_arrays(params, model.params) and not np.any(model(tokens))


def test_on_a_mesh(folder, model):
    mesh = make_mesh(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])
    spread = Llama.from_pretrained(folder, mesh=mesh)
    assert len(spread.layers.q.weight[...].devices()) == 4
    tokens = np.arange(24).reshape(2, 12)
    np.testing.assert_allclose(spread(tokens), model(tokens), atol=1e-4)
    assert spread.generate(QUESTION, max_new_tokens=6) == model.generate(QUESTION, max_new_tokens=6)


def test_wrong_input_is_one_line(model, folder, tmp_path):
    with pytest.raises(UserError, match="model: "):
        Llama.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match="dtype=flaot32: .*did you mean 'float32'"):
        Llama.from_pretrained(folder, dtype="flaot32")
    with pytest.raises(UserError, match="dtype=int8: "):
        Llama.from_pretrained(folder, dtype="int8")
    with pytest.raises(UserError, match="step, ignore_keys, adapter, base: go to open_model"):
        Llama.from_pretrained(model.source, step=3)
    with pytest.raises(UserError, match="dtype=int32: "):
        model([[1, 2]], compute_dtype="int32")
    with pytest.raises(UserError, match="dtype=source: "):
        model.save_pretrained(tmp_path / "copy", dtype="source")


@pytest.mark.parametrize(
    "tokens, text",
    [
        ([1, 2, 3], r"int64 of shape \[3\]; must be"),
        ([[[1, 2]]], r"of shape \[1, 1, 2\]"),
        ([[1.0, 2.5]], "float64 of shape"),
        (jnp.ones((1, 2)), "float32 of shape"),
        ([[]], r"of shape \[1, 0\]"),
        ([[1, 2], [3]], "rows of several lengths"),
        (QUESTION, "<U30 of shape"),
    ],
)
def test_tokens_that_are_none(model, tokens, text):
    with pytest.raises(UserError, match=f"tokens: .*{text}|tokens: {text}"):
        model(tokens)


def test_ids_outside_the_vocabulary_give_nan_however_long_they_are(model):
    for token in (-1, 10**6, 2**40, -(2**40)):
        assert np.isnan(model([[token, 2]])).all()
    assert np.isnan(model(np.array([[2**64 - 1, 2]], np.uint64))).all()
    assert np.array_equal(model(np.array([[1, 2]], np.uint8)), model([[1, 2]]))


def test_prompts_may_come_from_a_generator(model):
    assert model.generate((p for p in [QUESTION]), max_new_tokens=4) == model.generate([QUESTION], max_new_tokens=4)


@pytest.mark.parametrize("module", ["mmed_jax", "data_gen", "mmed_jax.data.sources", "data_gen.commands.convert"])
def test_importing_the_package_starts_no_jax(repo, module):
    code = f"import sys, {module}; print([m for m in ('jax', 'flax', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_that_the_package_does_not_have():
    import mmed_jax

    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        mmed_jax.Lama  # noqa: B018
    assert "Llama" in mmed_jax.__all__
