"""Records to samples, mixing weights, the split by question: everything is kept or counted."""

import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed_jax.common.errors import UserError
from mmed_jax.data.chat import chat_format, encode_chat
from mmed_jax.data.multiple_choice import encode_mcq
from mmed_jax.data.records.mixing import copies
from mmed_jax.data.records.schema import LANGUAGES, group_ids, validate_record
from mmed_jax.data.records.split import by_question, without_overlap
from mmed_jax.data.records.store import RecordStore
from mmed_jax.data.tokenize import RenderSettings, build_samples
from mmed_jax.data.tokenizers.tokenizer import encode_text, load_tokenizer
from tests.support.tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tok")))


def talk(ident, question, answer="Yes.", language="en", **more):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return validate_record({"id": ident, "language": language, "messages": messages, **more}, "test:1")


def mcq(ident, rationale="Because.", **more):
    record = {"id": ident, "language": "en", "question": f"Question {ident}?", "options": {"A": "x", "B": "y"}}
    return validate_record({**record, "answer_idx": "B", "rationale": rationale, **more}, "test:1")


def sample(samples, i):
    span = slice(samples.offsets[i], samples.offsets[i + 1])
    return samples.ids[span].tolist(), samples.trained[span].tolist()


def test_two_samples_a_question_and_reasons_for_the_rest(tok):
    records = [mcq("a"), mcq("b", rationale=" "), mcq("c", needs_image=True), mcq("d", language="ja")]
    samples = build_samples(tok, records, RenderSettings(512))
    assert samples.names == ["a:rationale", "a:direct", "b:direct", "d:rationale", "d:direct"]
    assert samples.left_out == Counter(no_rationale=1, needs_image=1)
    assert samples.record.tolist() == [0, 0, 1, 3, 3]
    assert samples.language.tolist() == [1, 1, 1, 3, 3]
    assert samples.kinds == ["rationale", "direct", "direct", "rationale", "direct"]
    for i, name in enumerate(samples.names):
        expected = encode_mcq(tok, records[samples.record[i]], name.split(":")[1])
        assert sample(samples, i) == (expected.ids, expected.trained)
        assert samples.slots[i] == expected.slots
        assert samples.supervised[i] == sum(expected.trained)
    only = build_samples(tok, records, RenderSettings(512, modes=("direct",)), which=[1, 3])
    assert only.names == ["b:direct", "d:direct"] and not only.left_out


def test_system_prompt_only_where_there_is_none(tok):
    own = talk("own", "q")
    own["messages"].insert(0, {"role": "system", "content": "Mine."})
    samples = build_samples(tok, [talk("t", "q"), own], RenderSettings(512, system_prompt="Be brief."))
    added = [{"role": "system", "content": "Be brief."}, *talk("t", "q")["messages"]]
    assert sample(samples, 0)[0] == encode_chat(tok, added).ids
    assert sample(samples, 1)[0] == encode_chat(tok, own["messages"]).ids


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt"])
def test_too_long(tok, policy):
    records = [
        talk("short", "q"),
        talk("long question", "FIRST " + "word " * 300 + "end?"),
        talk("long answer", "q", "word " * 300),
        mcq("long passage", context="FIRST " + "word " * 300 + "end."),
        mcq("long choice", options={"A": "word " * 300, "B": "y"}),
    ]
    settings_ = RenderSettings(200, overlong=policy, modes=("direct",))
    whole = build_samples(tok, records, RenderSettings(10_000, modes=("direct",)))
    samples = build_samples(tok, records, settings_)
    assert len(whole) == 5 and samples.slots.max() <= 200
    if policy == "drop":
        assert samples.names == ["short"] and samples.left_out == Counter(too_long=4) and samples.shortened == 0
        return
    assert samples.names == ["short", "long question", "long passage:direct"]
    assert samples.left_out == Counter(too_long=2) and samples.shortened == 2
    text = tok.decode(sample(samples, 1)[0])
    assert "FIRST" not in text and "end?<|eot_id|>" in text
    ids, trained = sample(samples, 2)
    text = tok.decode(ids)
    # The passage loses its beginning; instruction, question and options stay whole.
    assert "FIRST" not in text and "end.\n\nQuestion long passage?\nA. x\nB. y<|eot_id|>" in text
    assert "Answer this medical multiple-choice question." in text
    answer = [i for i, t in zip(ids, trained) if t]
    assert answer == [*encode_text(tok, "Answer: B"), chat_format(tok).eot]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 30), seq_len=st.integers(30, 300), seed=st.integers(0, 99), cut=st.booleans())
def test_every_draft_is_a_sample_or_counted(tok, n, seq_len, seed, cut):
    rng = np.random.default_rng(seed)
    records = [
        mcq(
            f"r{i}",
            rationale="why " * int(rng.integers(0, 40)),
            needs_image=bool(rng.random() < 0.2),
            context="passage " * int(rng.integers(1, 40)),
        )
        for i in range(n)
    ]
    options = RenderSettings(seq_len, overlong="truncate_prompt" if cut else "drop")
    samples = build_samples(tok, records, options)
    images = samples.left_out["needs_image"]
    assert images == sum(r["needs_image"] for r in records)
    assert len(samples) + samples.left_out.total() - images == 2 * (n - images)
    assert (samples.slots <= seq_len).all() and (samples.supervised > 0).all()
    assert len(samples.offsets) == len(samples) + 1 and samples.offsets[-1] == len(samples.ids) == len(samples.trained)


def store_of(records, seed=0):
    return RecordStore(records, Path(tempfile.gettempdir()), seed)


def repeats(records, source_weights, language_weights, seed):
    return copies(store_of(records, seed), np.arange(len(records)), source_weights, language_weights)


def split(records, fraction, seed):
    return tuple(indices.tolist() for indices in by_question(store_of(records, seed), fraction))


def test_records_come_back_from_the_disk(tok):
    records = [mcq("é", rationale="因为"), talk("b", "q", needs_image=True), mcq("c", language="ja")]
    store = store_of(records)
    assert [store.id(i) for i in range(3)] == [r["id"] for r in records] and len(store) == 3
    assert list(store) == store[:] == [{k: v for k, v in r.items() if k != "provenance"} for r in records]
    in_memory, settings_ = build_samples(tok, records, RenderSettings(512)), RenderSettings(512)
    in_files = build_samples(tok, store, settings_, folder=Path(tempfile.gettempdir()), id_of=store.id)
    for name in ("ids", "trained"):
        assert np.array_equal(getattr(in_files, name)[:], getattr(in_memory, name))
    assert list(in_files.names) == in_memory.names and in_files.left_out == in_memory.left_out
    assert in_files.text_bytes.tolist() == in_memory.text_bytes.tolist()


def test_records_on_the_disk_take_little_memory():
    """Nine megabytes of text; what is held are the buffers of two files and some fifty bytes a record."""
    text = "x" * 16_000
    records = (talk(f"id{i}", f"{i}: {text}", provenance={"group": str(i)}) for i in range(600))
    tracemalloc.start()
    store = store_of(records)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(store) == 600 and held < 3e6 and peak < 4e6
    assert store[599]["messages"][0]["content"] == f"599: {text}"


def test_weights_are_expected_repetitions():
    records = [talk(f"{s}-{c}-{i}", "q", source=s, language=c) for s in "ab" for c in ("en", "zh") for i in range(2000)]
    n = repeats(records, {"a": 2.5, "b": 0.0}, {"zh": 0.5}, seed=3).reshape(2, 2, 2000)
    assert set(np.unique(n[0, 0])) == {2, 3} and abs(n[0, 0].mean() - 2.5) < 0.05
    assert set(np.unique(n[0, 1])) == {1, 2} and abs(n[0, 1].mean() - 1.25) < 0.05
    assert not n[1].any()
    assert (repeats(records, {}, {}, seed=3) == 1).all()
    # A record keeps its number when others go, and another seed chooses others.
    part = records[::3]
    assert (repeats(part, {"a": 2.5, "b": 0.0}, {"zh": 0.5}, seed=3) == n.reshape(-1)[::3]).all()
    assert (repeats(records, {"a": 2.5, "b": 0.0}, {"zh": 0.5}, seed=4) != n.reshape(-1)).any()
    some = np.arange(0, len(records), 3)
    assert (copies(store_of(records, 3), some, {"a": 2.5, "b": 0.0}, {"zh": 0.5}) == n.reshape(-1)[some]).all()


def test_wrong_weights_name_the_nearest():
    records = [talk("1", "q", source="medquad"), talk("2", "q", source="toyhom")]
    with pytest.raises(UserError, match="'medqad', did you mean 'medquad'"):
        repeats(records, {"medqad": 1.0}, {}, 0)
    with pytest.raises(UserError, match="language 'jp' is unknown"):
        repeats(records, {}, {"jp": 1.0}, 0)
    with pytest.raises(UserError, match="toyhom=-1 must be"):
        repeats(records, {"toyhom": -1.0}, {}, 0)
    with pytest.raises(UserError, match="en=nan"):
        repeats(records, {}, {"en": float("nan")}, 0)
    with pytest.raises(UserError, match="leave no record"):
        repeats(records, {}, {"en": 0.0}, 0)


@settings(max_examples=80, deadline=None)
@given(
    keys=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 40), st.sampled_from(LANGUAGES)), min_size=2, max_size=60
    ),
    fraction=st.sampled_from([0.0, 0.02, 0.2, 0.5, 0.9]),
    seed=st.integers(0, 9),
)
def test_split_keeps_questions_together(keys, fraction, seed):
    records = [
        talk(f"id{i}", f"Question {q}?", language=code, provenance={"group": f"g{g}"} if g < 25 else {})
        for i, (g, q, code) in enumerate(keys)
    ]
    train, held_out = split(records, fraction, seed)
    assert sorted(train + held_out) == list(range(len(records))) and train
    groups = group_ids(records)
    assert not {groups[i] for i in train} & {groups[i] for i in held_out}
    if fraction == 0:
        assert not held_out
    # Another order of the records gives the same split.
    back = list(reversed(records))
    assert {back[i]["id"] for i in split(back, fraction, seed)[1]} == {records[i]["id"] for i in held_out}
    # Named validation files: nothing that asks the same stays in training.
    kept = without_overlap(store_of(records), store_of([records[i] for i in held_out]))
    assert kept.tolist() == train


def test_split_gives_each_language_its_share():
    sizes = {"en": 400, "zh": 100, "ko": 4}
    records = [talk(f"{code}{i}", f"{code} {i}", language=code) for code, n in sizes.items() for i in range(n)]
    _, held_out = split(records, 0.05, 0)
    counts = Counter(records[i]["language"] for i in held_out)
    assert counts == Counter(en=20, zh=5, ko=1)
    _, other = split(records, 0.05, 1)
    assert set(other) != set(held_out)
    parallel = [
        talk(f"{code}{i}", f"{code} {i}", language=code, provenance={"group": str(i)})
        for i in range(50)
        for code in LANGUAGES
    ]
    _, held_out = split(parallel, 0.1, 0)
    assert Counter(parallel[i]["language"] for i in held_out) == Counter(dict.fromkeys(LANGUAGES, 5))
