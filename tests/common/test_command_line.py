"""One parser for every command: what is wrong is one line with the nearest flag."""

import pytest

from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError


def complaint(*argv: str, **kwargs: bool) -> str:
    parser = Parser(prog="python -m data_gen build", **kwargs)
    parser.add_argument("--output")
    parser.add_argument("--limit", type=int)
    with pytest.raises(UserError) as e:
        parser.parse_args(argv)
    return str(e.value)


def test_an_unknown_flag_names_the_nearest():
    assert complaint("--outptu=x") == "unrecognized arguments: --outptu=x, did you mean '--output'?"
    assert complaint("zzz") == "unrecognized arguments: zzz; valid: --help, --output, --limit"
    assert complaint("--outptu=a b", "c").startswith("unrecognized arguments: --outptu=a b c, did you mean")
    assert complaint("").startswith("unrecognized arguments: ")


def test_a_wrong_value_is_argparses_sentence():
    assert complaint("--limit=many") == "argument --limit: invalid int value: 'many'"
    # A value that quotes argparse's word for flags that are not known is no such flag.
    assert complaint("--limit=unrecognized arguments") == (
        "argument --limit: invalid int value: 'unrecognized arguments'"
    )


def test_a_command_that_is_one_of_several_names_itself():
    assert complaint("--limit=many", names_itself=True).startswith("python -m data_gen build: argument --limit: ")
    assert complaint("--outptu", names_itself=True) == (
        "python -m data_gen build: unrecognized arguments: --outptu, did you mean '--output'?"
    )


def test_there_is_one_parser(repo):
    own = [
        path.relative_to(repo).as_posix()
        for room in ("mmed_jax", "data_gen", "scripts")
        for path in (repo / room).rglob("*.py")
        if "(argparse.ArgumentParser)" in path.read_text(encoding="utf-8")
    ]
    assert own == ["mmed_jax/common/command_line.py"]
