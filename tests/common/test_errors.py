"""Errors carry fields: who knows the place or the hint better changes that field, nobody another's sentence."""

import ast
import pickle

import pytest

from mmed_jax.common.errors import ReportedError, UserError, WorkError
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.data.records.schema import RecordError
from mmed_jax.data.sources.encodings import WrongEncoding, decode


@pytest.mark.parametrize("kind", [UserError, WorkError])
def test_one_line_of_place_problem_and_hint(kind):
    error = kind("broken", place="a.json", hint="; get it anew")
    assert str(error) == "a.json: broken; get it anew" == str(pickle.loads(pickle.dumps(error)))
    assert str(kind("all in one")) == "all in one" and str(kind()) == "" and str(kind(error)) == str(error)
    moved = error.at("b.json")
    assert type(moved) is kind and str(moved) == "b.json: broken; get it anew" and str(error).startswith("a.json")
    assert str(moved.with_hint("")) == "b.json: broken" and moved.with_hint("!").problem == "broken"


def test_a_kind_of_its_own_keeps_its_fields():
    error = RecordError("f.jsonl:3", "options", "must be letters").at("g.jsonl:4")
    assert isinstance(error, RecordError) and error.field == "options"
    assert str(error) == "g.jsonl:4: field 'options': must be letters"
    with pytest.raises(WrongEncoding) as e:
        decode("한국어 의학 질문과 답변".encode("cp949"), "q.csv", languages=("ko",))
    assert str(e.value).endswith("; it looks like cp949; save the file as UTF-8 or add --encoding=cp949")
    assert str(e.value.for_flag("--recipe.source.q.encoding")).endswith(" or add --recipe.source.q.encoding=cp949")
    assert issubclass(WrongEncoding, ReportedError)


@pytest.mark.parametrize(
    "text, line, message",
    [
        ("{", 1, "broken JSON at column 2: Expecting property name enclosed in double quotes"),
        ('{"a": 1,\n"b"}', 2, "broken JSON at line 2 column 4: Expecting ':' delimiter"),
        ("[]", None, "expected a JSON dict, got list"),
    ],
)
def test_broken_json_knows_its_line(text, line, message):
    with pytest.raises(BadJSON) as e:
        loads(text, dict)
    assert (e.value.line, str(e.value)) == (line, message) and message.endswith(e.value.problem)


CUTTING = ("replace", "partition", "rpartition", "removeprefix", "removesuffix", "split", "sub")


def repaired(source: str) -> list[int]:
    """Lines where the text of a UserError or WorkError that was caught is cut or patched."""
    lines = []
    for handler in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ExceptHandler) and n.name):
        kinds = {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)}
        if not kinds & {"UserError", "WorkError", "ReportedError", "WrongForm", "RecordError", "BadJSON"}:
            continue
        for call in (n for n in ast.walk(handler) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)):
            of = [call.func.value, *call.args] if call.func.attr == "sub" else [call.func.value]
            texts = (n for part in of for n in ast.walk(part) if isinstance(n, ast.Call))
            named = {a.id for t in texts if isinstance(t.func, ast.Name) for a in t.args if isinstance(a, ast.Name)}
            if call.func.attr in CUTTING and handler.name in named:
                lines.append(call.lineno)
    return lines


def test_nobody_repairs_anothers_sentence(repo):
    caught = "try:\n    pass\nexcept UserError as e:\n    raise UserError(str(e).replace('a', 'b'))\n"
    assert repaired(caught) == [4] and repaired(caught.replace("str(e).replace('a', 'b')", "e")) == []
    files = [p for room in ("mmed_jax", "data_gen", "scripts", "configs") for p in sorted((repo / room).rglob("*.py"))]
    found = {p.relative_to(repo).as_posix(): lines for p in files if (lines := repaired(p.read_text("utf-8")))}
    assert found == {}
