"""The hash of code: by what it does, over all that it imports, and never over less than it says."""

import pytest

from mmed_jax.common.code_hash import MissingModule, code_hash, import_closure
from mmed_jax.data import packed_cache
from mmed_jax.planning import plan_cache

FILES = {
    "pack/__init__.py": '"""A package."""\n',
    "pack/entry.py": "import os\n\nfrom pack import first\n\n\ndef f():\n    return first.g()\n",
    "pack/first.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from pack import types_only\n\n\n"
    "def g():\n    from .room import second\n\n    return second.h()\n",
    "pack/room/__init__.py": "",
    "pack/room/second.py": "from ..third import VALUE\n\n\ndef h():\n    return VALUE\n",
    "pack/third.py": "from pack.printer import say\n\nVALUE = 1\nsay(VALUE)\n",
    "pack/printer.py": "from pack.colours import RED\n\n\ndef say(x):\n    print(RED, x)\n",
    "pack/colours.py": "RED = 1\n",
    "pack/types_only.py": "T = int\n",
    "pack/unused.py": "x = 1\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def change(root, name, old, new):
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))


def test_the_closure_follows_every_import(root):
    modules = ["colours", "entry", "first", "printer", "room.second", "third"]
    assert list(import_closure(["pack.entry"], root=root)) == [f"pack.{m}" for m in modules]
    without = list(import_closure(["pack.entry"], leave_out=("pack.printer",), root=root))
    assert without == ["pack.entry", "pack.first", "pack.room.second", "pack.third"]
    assert "pack.room.second" not in import_closure(["pack.entry"], leave_out=("pack.room",), root=root)


def test_comments_docstrings_and_formatting_do_not_count(root):
    before = code_hash(["pack.entry"], root=root)
    change(root, "pack/third.py", "VALUE = 1", "# Why.\nVALUE   =  (1)")
    change(root, "pack/entry.py", "def f():\n", 'def f():\n    """What it does."""\n')
    change(root, "pack/unused.py", "1", "2")
    assert code_hash(["pack.entry"], root=root) == before


def test_a_changed_statement_three_imports_away_counts(root):
    before = code_hash(["pack.entry"], root=root)
    change(root, "pack/third.py", "VALUE = 1", "VALUE = 2")
    assert code_hash(["pack.entry"], root=root) != before


def test_what_is_left_out_does_not_count(root):
    before = code_hash(["pack.entry"], leave_out=("pack.printer",), root=root)
    change(root, "pack/printer.py", "print(RED, x)", "print(x, RED)")
    change(root, "pack/colours.py", "1", "2")
    assert code_hash(["pack.entry"], leave_out=("pack.printer",), root=root) == before


def test_a_missing_module_is_an_error(root):
    with pytest.raises(MissingModule, match=r"pack.gone \(an entry\) is no module"):
        code_hash(["pack.gone"], root=root)
    with pytest.raises(MissingModule, match=r"pack.moved \(left out\)"):
        code_hash(["pack.entry"], leave_out=("pack.moved",), root=root)
    change(root, "pack/first.py", "from .room import second", "from .room import moved")
    with pytest.raises(MissingModule, match=r"pack.room.moved \(imported by pack.first\)"):
        code_hash(["pack.entry"], root=root)
    change(root, "pack/first.py", "from .room import moved", "import pack.other")
    with pytest.raises(MissingModule, match=r"pack.other \(imported by pack.first\)"):
        code_hash(["pack.entry"], root=root)


TABLES = """data.chat data.chat_formats data.multiple_choice data.pack data.packed_table data.plain_text data.prepare
    data.records.reading data.records.schema data.records.mixing data.records.split data.tokenize
    data.tokenizers.tokenizer data.tokenizers.ranks_file data.tokenizers.sentencepiece_file common.jsonl"""
PLANS = """model.llama model.attention model.config model.remat parallel.sharding parallel.xla_flags training.adafactor
    training.flops training.loss training.optim training.program training.state training.step planning.collective_time
    planning.hlo.analysis planning.hlo.collectives planning.hlo.flops planning.hlo.loops planning.hlo.text
    planning.memory planning.planner planning.schedule_time planning.step_time planning.topology"""


@pytest.mark.parametrize(
    "module, needed, unwanted",
    [
        (packed_cache, TABLES, "data.token_report common.console common.errors config.defaults"),
        (plan_cache, PLANS, "planning.plan_report planning.search report common.console config.defaults"),
    ],
)
def test_what_decides_tables_and_plans_is_in_their_keys(module, needed, unwanted):
    closure = import_closure(module.ENTRIES, leave_out=module.LEAVE_OUT)
    assert not {f"mmed_jax.{name}" for name in needed.split()} - closure.keys()
    assert not {f"mmed_jax.{name}" for name in unwanted.split()} & closure.keys()
