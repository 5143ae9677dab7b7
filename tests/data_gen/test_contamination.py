"""Test questions in training rows: by id, group, text and near-duplicate, and the known overlaps of real sets."""

from data_gen.sets.contamination import Benchmarks, Hit
from mmed_jax.data.sources import Conversion, get_source
from tests.data_gen.test_dedup import dialogue, mcq

CASE = (
    "A 45-year-old woman comes to the physician because of fatigue and pruritus for three months. Laboratory studies "
    "show an alkaline phosphatase of 450 U/L and antimitochondrial antibodies. "
)
OPTIONS = ["Ursodeoxycholic acid", "Prednisone", "Azathioprine", "Liver transplantation"]


def board_item():
    return mcq("bench-1", CASE + "Which of the following is the most appropriate treatment?", OPTIONS, "A")


def others(count: int) -> list[dict]:
    parts = ["asthma", "gout", "measles", "sepsis", "anaemia", "migraine", "psoriasis", "cholera"]
    return [
        mcq(
            f"bench-x{i}",
            f"In {parts[i % 8]} of type {i}, which of the following is the most appropriate treatment?",
            [f"Drug {i}", f"Surgery {i}", f"Diet {i}", f"Rest {i}"],
            "A",
        )
        for i in range(count)
    ]


def bench() -> Benchmarks:
    benchmarks = Benchmarks()
    assert benchmarks.add("board", [board_item(), *others(40)]) == 41
    return benchmarks


def test_by_text_in_other_writing_and_by_near_duplicate():
    b, item = bench(), board_item()
    row = {**item, "id": "mine", "question": item["question"].upper().replace(",", " ")}
    assert b.check(row) == Hit("board", "bench-1", "text", 1.0)
    reworded = item["question"].replace("comes to the physician because of", "presents with")
    hit = b.check({**item, "id": "mine", "question": reworded})
    assert hit.look == "near" and hit.item == "bench-1" and hit.score > 0.6
    # Inside a longer dialogue, options listed.
    listed = reworded + "\n" + "\n".join(f"{i}) {o}" for i, o in enumerate(OPTIONS, 1))
    assert b.check(dialogue("mine", "Please help me. " + listed, "Ursodeoxycholic acid, because ...")).look == "near"


def test_common_phrases_and_options_alone_are_no_contamination():
    b = bench()
    question = "In tuberculosis of the spine, which of the following is the most appropriate treatment?"
    assert b.check(mcq("mine", question, ["Rifampicin", "Bed rest", "Brace", "Fusion"], "A")) is None
    assert b.check(mcq("mine", "A man has jaundice. What now?", OPTIONS, "A")) is None
    assert b.check(dialogue("mine", "What is ursodeoxycholic acid?", "A bile acid for biliary cholangitis.")) is None


def test_short_and_formulaic_questions_count_with_their_options_only():
    b = Benchmarks()
    b.add("fr", [mcq("t", "Laquelle est exacte ?", ["Le foie sécrète la bile", "Le rein filtre"], "A", "fr")])
    assert b.check(mcq("r", "Laquelle est exacte ?", ["La rate", "Le coeur"], "A", "fr")) is None
    turned = ["Le rein filtre", "Le foie sécrète la bile"]
    assert b.check(mcq("r", "Laquelle est exacte?", turned, "B", "fr")).look == "text"


def test_by_id_and_by_group_across_languages():
    about = {"original_id": "77", "split": "test", "group": "board:77"}
    item = {**board_item(), "source": "board", "provenance": about}
    b = Benchmarks()
    b.add("board", [item])
    spanish = mcq("es-1", "Mujer de 45 años ...", ["uno", "dos"], "A", "es")
    assert b.check({**spanish, "source": "x", "provenance": {"group": "board:77"}}).look == "group"
    same = {"original_id": "77", "split": "test"}
    assert b.check({**spanish, "source": "board", "provenance": same}).look == "id"
    assert b.check({**spanish, "source": "board", "provenance": {"original_id": "77", "split": "train"}}) is None
    assert b.check({**spanish, "id": "bench-1", "source": "y"}).look == "id"
    assert Benchmarks().check(spanish) is None


def test_by_parentage_where_the_test_items_name_no_group():
    b = Benchmarks()
    b.add("board", [{**mcq(f"t{i}", f"Question {i}?", ["one", "two"], "A"), "source": "board"} for i in range(200)])
    made = [
        {
            **mcq(f"t{i}@ko", f"다른 글 {i}", ["하나", "둘"], "A", "ko"),
            "source": "board",
            "provenance": {"parent": f"t{i}", "group": f"t{i}"},
        }
        for i in range(200)
    ]
    assert [b.check(r).item for r in made] == [f"t{i}" for i in range(200)]
    row = made[7]
    assert b.check(row).look == "parent"
    # Of a translation of an expansion the test item stands in the history only, or in the id itself.
    steps = {"parent": "t7+full", "group": "g", "history": [{"prompt": "answer_expanding/1", "parent": "t7"}]}
    assert b.check({**row, "id": "x1", "provenance": steps}).item == "t7"
    assert b.check({**row, "id": "t7+full@ko#2", "provenance": {}}).item == "t7"
    assert b.check({**row, "id": "x1", "provenance": {"group": "t7"}}).look == "group"
    # A test set that is a translation gives its parent away, and other versions of it.
    translated = Benchmarks()
    translated.add("board", [row])
    assert translated.check({**mcq("t7", "Question 7?", ["one", "two"], "A"), "source": "board"}).item == "t7@ko"
    # Another source has its own "t7"; without a source there is nothing to tell them apart by.
    assert b.check({**row, "source": "elsewhere"}) is None
    assert b.check({**row, "source": "user"}).item == "t7"


def test_every_hit_names_its_benchmark():
    """Not an item of it: card, report and contaminated.jsonl count by that name."""
    b = Benchmarks()
    texts = [f"Which finding number {i} is typical of acute appendicitis in adults?" for i in range(4)]
    for name in ("first", "second"):
        rows = [mcq(f"{name}-{i}", f"{text} ({name})", ["one", "two"], "A") for i, text in enumerate(texts)]
        b.add(name, [{**r, "source": name, "provenance": {"parent": "p:1", "group": f"g{r['id']}"}} for r in rows])
    for name in ("first", "second"):
        asked = [mcq(f"row{i}", f"{text} ({name})", ["one", "two"], "A") for i, text in enumerate(texts)]
        asked += [mcq(f"{name}-{i}@ko", f"다른 글 {i}", ["하나", "둘"], "A", "ko") for i in range(4)]
        assert [b.check(r).benchmark for r in asked] == [name] * 8


def test_bare_numbers_name_nothing_outside_their_source():
    def numbered(ident: str, source: str, **about) -> dict:
        row = mcq(ident, f"Of {source}?", [f"{source} one", f"{source} two"], "A")
        return {**row, "source": source, "provenance": about}

    b = Benchmarks()
    b.add("board", [numbered("17", "board"), numbered("board-18", "board", group="18")])
    assert b.check(numbered("17", "mine")) is None and b.check(numbered("17@ko", "mine", parent="17")) is None
    assert b.check(numbered("9", "mine", group="18")) is None and b.check(numbered("17", "user")) is None
    assert b.check(numbered("9", "board", group="18")).look == "group"
    assert b.check(numbered("17@ko", "board", parent="17")).look == "parent"
    # A name that says its source needs no other.
    assert b.check(numbered("x", "mine", parent="board-18")).look == "parent"


def test_known_overlaps_of_real_sets(shared_dir):
    """The doctors of CasiMedicos explain the examination that HEAD-QA holds; FrenchMedMCQA repeats itself."""
    data = shared_dir / "data"

    def rows(source: str, path: str, **options):
        return list(Conversion(get_source(source), data / path, **options))

    headqa = Benchmarks()
    headqa.add("headqa", rows("headqa", "headqa_es_en/dev_HEAD.json"))
    spanish = [headqa.check(r) for r in rows("casimedicos", "casimedicos_en_es_fr/es_train.jsonl")]
    hits = [h for h in spanish if h]
    # 84 cases share 24 characters in a row with the development set by another count.
    assert 80 <= len(hits) <= 92 and {h.look for h in hits} == {"text", "near"}
    dialogues = rows("casimedicos", "casimedicos_en_es_fr/es_train.jsonl", kind="instruction")
    assert sum(headqa.check(r) is not None for r in dialogues) == len(hits)

    french = Benchmarks()
    french.add("frenchmedmcqa", rows("frenchmedmcqa", "frenchmedmcqa_fr/dev.json"))
    repeated = [(r, h) for r in rows("frenchmedmcqa", "frenchmedmcqa_fr/train.json") if (h := french.check(r))]
    assert any("benzène" in r["question"] and h.look == "text" for r, h in repeated)
    assert len(repeated) < 0.015 * 2171
