"""The list of slow tests: every entry is a test that is there, and every room keeps tests that are not slow."""

import ast

from tests.conftest import slow_tests


def test_every_entry_is_a_test(repo):
    for entry in slow_tests():
        path, _, name = entry.partition("::")
        text = (repo / path).read_text(encoding="utf-8")
        assert not name or f"\ndef {name}(" in text, f"tests/slow.txt: no test {entry}"


def test_every_room_keeps_quick_tests(repo):
    slow = slow_tests()
    for room in sorted({path.parent for path in (repo / "tests").glob("*/test_*.py")}):
        quick = []
        for path in room.glob("test_*.py"):
            name = path.relative_to(repo).as_posix()
            tree = ast.parse(path.read_text(encoding="utf-8"))
            tests = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
            quick += [t for t in tests if name not in slow and f"{name}::{t}" not in slow]
        assert len(quick) >= 3, f"{room.name}: {quick}"
