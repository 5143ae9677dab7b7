"""handcraft: the samples of the repository pass; each kind of fault in them is found and named."""

import copy
import json

import pytest

from data_gen.commands import handcraft
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.reading import read_records


@pytest.fixture(scope="module")
def samples() -> list[dict]:
    return handcraft.read(handcraft.FOLDER)


def test_the_repositorys_samples_pass(capsys, tmp_path):
    output = tmp_path / "mcq.jsonl"
    handcraft.main(["--kind=mcq", f"--output={output}"])
    assert "140 records, no problems" in capsys.readouterr().out
    assert output.read_bytes() == (handcraft.FOLDER / "mcq.jsonl").read_bytes()
    assert len(list(read_records(output, "mcq"))) == 140


def change(samples, ident, **fields):
    records = copy.deepcopy(samples)
    next(r for r in records if r["id"] == ident).update(fields)
    return records


@pytest.mark.parametrize(
    "ident,fields,expected",
    [
        ("hc-mcq-001-ko", {"method": "original"}, "not 'handcrafted'"),
        ("hc-mcq-001-ko", {"provenance": {"group": "hc-mcq-001"}}, "no provenance.notice"),
        ("hc-mcq-001-ko", {"provenance": {"notice": "x", "group": "other"}}, "group hc-mcq-001: lacks ko"),
        ("hc-mcq-001-ko", {"language": "ja"}, "group hc-mcq-001: lacks ko; holds twice ja"),
        (
            "hc-mcq-002-en",
            {"question": "  Down syndrome is most often caused by an extra copy of which CHROMOSOME?"},
            "hc-mcq-002-en: the same question as hc-mcq-001-en",
        ),
        ("hc-mcq-001-en", {"options": {"A": "X", "B": "Ｘ ", "C": "Y", "D": "Z"}}, "two options are the same"),
    ],
)
def test_each_fault_is_named(samples, ident, fields, expected):
    found = handcraft.problems(change(samples, ident, **fields))
    assert any(expected in line for line in found), found


def test_unbalanced_letters(samples):
    records = [{**r, "answer_idx": "A"} if "options" in r and r["language"] == "fr" else r for r in samples]
    found = handcraft.problems(records)
    assert any(line.startswith("fr: 20 of 20 keys are A; an even share is 5") for line in found)
    assert not any(line.startswith("es:") for line in found)


def test_the_command_fails_loudly(samples, tmp_path):
    file = tmp_path / "mine.jsonl"
    mcq = [r for r in samples if "options" in r]
    file.write_text("\n".join(json.dumps(r) for r in change(mcq, "hc-mcq-001-en", source="mine")), encoding="utf-8")
    with pytest.raises(UserError, match="1 problems in 140 records, first: hc-mcq-001-en: source and method"):
        handcraft.main([f"--input={file}"])
    (tmp_path / "again.jsonl").write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="id 'hc-mcq-001-en' was already used"):
        handcraft.main([f"--input={tmp_path}"])
    for flags, message in (
        (["--input=/nowhere"], "no .jsonl file there"),
        (["--kind=mqc"], "did you mean 'mcq'"),
        (["--output=x.csv"], "must end in .jsonl"),
        (["--outptu=x"], "did you mean '--output'"),
    ):
        with pytest.raises(UserError, match=message):
            handcraft.main(flags)
