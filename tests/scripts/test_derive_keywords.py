"""Keywords by contrast: planted words are found, general ones and pieces are not."""

import json
import random

import pytest

from data_gen.corpus.keyword_lists import read_keywords
from mmed_jax.common.errors import UserError
from scripts.derive_keywords import candidates, main

GENERAL = {
    "en": "council bridge train summer people weather market street garden music river window".split(),
    "ko": "시의회 다리 열차 여름 사람 날씨 시장 거리 정원 음악 강물 창문".split(),
}
MEDICAL = {"en": "pneumonia diabetes insulin fever biopsy".split(), "ko": "폐렴 당뇨병 인슐린 발열 생검".split()}


def write(path, language: str, medical: bool) -> str:
    rng = random.Random(medical)
    glue = " " if language == "en" else "의 "
    lines = []
    for i in range(300):
        words = rng.choices(GENERAL[language], k=12) + (rng.choices(MEDICAL[language], k=4) if medical else [])
        rng.shuffle(words)
        text = glue.join(words)
        kinds = ({"text": text}, {"messages": [{"role": "user", "content": text}]}, {"question": text, "options": {}})
        lines.append(json.dumps(kinds[i % 3], ensure_ascii=False))
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("language", ["en", "ko"])
def test_planted_words_are_found(tmp_path, capsys, language):
    out = tmp_path / f"{language}.txt"
    main(
        [
            f"--language={language}",
            f"--medical={write(tmp_path / 'm.jsonl', language, True)}",
            f"--general={write(tmp_path / 'g.jsonl', language, False)}",
            f"--output={out}",
        ]
    )
    found = [keyword.word for keyword in read_keywords(out, language)]
    assert set(MEDICAL[language]) == {word.removesuffix("의") for word in found}
    assert f"{len(found)} keywords of" in capsys.readouterr().out


def test_candidates():
    assert candidates("The Fièvre, fièvre 12 mg пневмония", "fr") == {"fièvre"}
    assert candidates("急性肝炎と", "zh") == {"急性", "性肝", "肝炎", "急性肝", "性肝炎", "急性肝炎"}


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "x"}\n')
    (tmp_path / "empty.txt").write_text("")
    rest = [f"--general={tmp_path}/empty.txt", f"--output={tmp_path}/o.txt"]
    for argv, problem in (
        (["--language=xx", f"--medical={tmp_path}/a.jsonl"], "unknown"),
        (["--language=en", f"--medical={tmp_path}/a.jsonl"], "a.jsonl:1: neither text, messages nor a question"),
        (["--language=en", f"--medical={tmp_path}/gone.txt"], "no such file"),
        (["--language=en", f"--medical={tmp_path}/empty.txt"], "no documents"),
    ):
        with pytest.raises(UserError, match=problem):
            main([*argv, *rest])
