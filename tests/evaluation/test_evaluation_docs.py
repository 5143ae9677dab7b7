"""docs/evaluation.md says what the code does."""

import re

import pytest

from mmed_jax import compare, evaluate, rate
from mmed_jax.evaluation.extraction.extract import extract

OPTIONS = {"A": "lisinopril", "B": "labetalol", "C": "losartan"}


def test_examples_of_how_answers_are_read(repo):
    text = (repo / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \| ([A-Z,]+|-) \| `([\w:]+)` \|$", text, re.MULTILINE)
    assert len(rows) == 15
    for output, letters, rule in rows:
        assert extract(output, OPTIONS, "en") == (None if letters == "-" else letters, rule), output


def test_number_of_outputs_in_the_corpus(repo):
    lines = sum(
        f.read_text(encoding="utf-8").count("\n") for f in (repo / "tests" / "evaluation" / "corpus").glob("*.jsonl")
    )
    assert f"{lines} outputs in seven" in " ".join((repo / "docs" / "evaluation.md").read_text().split())


@pytest.mark.parametrize("name", ["evaluation.md", "ratings.md"])
def test_flags_of_every_command_are_known(repo, name, capsys):
    """Commands of the pages, asked for their help: a flag that is not there would be refused first."""
    text = (repo / "docs" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^    python -m mmed_jax\.(evaluate|compare|rate)(.*)$", text, re.MULTILINE)
    assert found
    for command, rest in found:
        argv = re.findall(r'(?:[^\s"\[]|"[^"]*")+', re.sub(r"\[|\]", " ", rest))
        sub = argv[:1] if argv[:1] in (["list"], ["sheet"], ["judge"], ["correlate"]) else []
        with pytest.raises(SystemExit) as e:
            {"evaluate": evaluate, "compare": compare, "rate": rate}[command].main([*sub, "--help"])
        shown = capsys.readouterr().out
        assert e.value.code == 0
        for flag in (a.split("=")[0] for a in argv if a.startswith("--")):
            assert re.search(rf"{flag}\b", shown), (command, flag)
