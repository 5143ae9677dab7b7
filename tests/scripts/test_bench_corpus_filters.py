"""The measurement of the filters: a row for every filter; published counting is what mode `paper` counts."""

import json
import re

import pytest

from data_gen.corpus.keywords import KeywordRule, KeywordSettings
from mmed_jax.common.errors import UserError
from mmed_jax.data.languages.declarations import DECLARATIONS
from scripts.bench_corpus_filters import filters, made_pages, main, published_score

CODES = [language.code for language in DECLARATIONS]


def test_a_row_for_every_filter(capsys):
    main(["--megabytes=0.01"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert set(rows[0]) == {"MB/s", *CODES, "all"}
    assert [row[0] for row in rows[2:-1]] == list(filters("en")) and all(
        float(x) > 0 for row in rows[2:-1] for x in row[1:]
    )
    assert re.fullmatch(r"keyword filter: [\d.]+ times as fast as counting as published", rows[-1][0])


@pytest.mark.parametrize("language", CODES)
def test_published_counting_is_mode_paper(language):
    rule, score = KeywordRule(KeywordSettings("paper")), published_score(language)
    for page in made_pages(0.05)[language]:
        unique, share = score(page)
        found = rule.score(page, language)
        assert (found.unique, found.share) == (unique, pytest.approx(share)) and unique > 0


def test_documents_of_ones_own(tmp_path, capsys):
    path = tmp_path / "web.jsonl"
    path.write_text(json.dumps({"text": "fever " * 30, "language": "en"}) + "\n")
    main([f"--input={path}"])
    assert capsys.readouterr().out.startswith("| MB/s | en | all |")
    path.write_text('{"text": "x", "language": "xx"}\n')
    with pytest.raises(UserError, match="web.jsonl:1: no text, or no language"):
        main([f"--input={path}"])
