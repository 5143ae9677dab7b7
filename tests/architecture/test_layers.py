"""The layers of the source tree: who may import whom, read off the source, imports in functions included."""

import ast
import re

import pytest

from tests.support.source_tree import circles, imports, modules, names_in_import_calls

# Lowest first. A module imports its own room and rooms of lower lines; rooms of one line know nothing of each other.
LAYERS = (
    ("mmed_jax.common",),
    ("mmed_jax.config",),
    ("mmed_jax.parallel",),
    ("mmed_jax.model", "mmed_jax.checkpoints"),
    ("mmed_jax.data",),
    ("mmed_jax.hf", "mmed_jax.llm_api"),
    ("mmed_jax.training",),
    ("mmed_jax.planning", "mmed_jax.inference"),
    ("mmed_jax.evaluation", "mmed_jax.checkup", "mmed_jax.lineage"),
    ("mmed_jax.studies",),
    ("data_gen",),
    ("data_gen.commands",),
    ("commands",),  # the files directly under mmed_jax/
    ("configs",),
    ("scripts",),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
# Faults that are still to be mended. The lists only shrink: an entry that is not needed any more fails the test.
KNOWN_UPWARDS: set[str] = set()
KNOWN_CIRCLES: set[str] = set()
KNOWN_BY_NAME: set[str] = set()


def room_of(module: str) -> str:
    """The room that a module lies in: "mmed_jax.data.pack" -> "mmed_jax.data", "mmed_jax.train" -> "commands"."""
    top, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    if top == "data_gen":
        return "data_gen.commands" if first in ("commands", "__main__") else "data_gen"
    if top != "mmed_jax":
        return top
    return f"mmed_jax.{first}" if f"mmed_jax.{first}" in HEIGHT else "commands"


def is_allowed(module: str, imported: str) -> bool:
    """Whether the layers let one module import the other. A command imports no command, mmed_jax no recipe."""
    mine, other = room_of(module), room_of(imported)
    if module == "mmed_jax":  # hands names on, when they are asked for; commands are no names to hand on
        return other not in ("commands", "data_gen", "data_gen.commands", "configs", "scripts")
    if module.startswith("mmed_jax.") and not imported.startswith("mmed_jax."):
        return False
    return HEIGHT[other] < HEIGHT[mine] or (mine == other != "commands")


def upward_imports(root) -> set[str]:
    """Imports that the layers forbid, each as "importer -> imported"."""
    edges = imports(root)
    return {f"{m} -> {other}" for m in edges for other in edges[m] if not is_allowed(m, other)}


def foreign_names(root) -> set[str]:
    """Names of data_gen and configs in modules of mmed_jax that import by name, each as "importer -> name"."""
    found = set()
    for module in modules(root).values():
        if module.name.split(".")[0] == "mmed_jax":
            names = [n for n in names_in_import_calls(module) if re.match(r"(data_gen|configs)(\.|$)", n)]
            found |= {f"{module.name} -> {name}" for name in names}
    return found


def changes(found: set[str], known: set[str]) -> list[str]:
    """What to do about faults that are new and about entries of a list of known ones that are mended."""
    return [f"mend: {x}" for x in sorted(found - known)] + [f"take out: {x}" for x in sorted(known - found)]


def test_no_import_upwards(repo):
    assert changes(upward_imports(repo), KNOWN_UPWARDS) == []


def test_no_circle(repo):
    found = {", ".join(name.removeprefix("mmed_jax.") for name in group) for group in circles(imports(repo))}
    assert changes(found, KNOWN_CIRCLES) == []


def test_mmed_jax_finds_no_data_gen_by_name(repo):
    assert changes(foreign_names(repo), KNOWN_BY_NAME) == []


def test_every_folder_of_mmed_jax_has_its_layer(repo):
    folders = {f"mmed_jax.{p.parent.name}" for p in (repo / "mmed_jax").glob("*/__init__.py")}
    assert folders == {room for room in HEIGHT if room.startswith("mmed_jax.")}


def test_a_file_directly_under_mmed_jax_is_a_command(repo):
    """It has a main, runs as `python -m`, and stands in README's table of commands, which lists no other."""
    files = {p.stem for p in (repo / "mmed_jax").glob("*.py")} - {"__init__"}
    for name in files:
        tree = modules(repo)[f"mmed_jax.{name}"].tree
        assert any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in tree.body), f"{name}: no main"
        assert ast.unparse(tree.body[-1]).startswith("if __name__ == '__main__'"), f"{name}: not run by python -m"
    table = [line for line in (repo / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert {n for line in table for n in re.findall(r"python -m mmed_jax\.(\w+)", line)} == files


def test_every_package_says_what_it_holds(repo):
    assert [m.name for m in modules(repo).values() if m.is_package and not ast.get_docstring(m.tree)] == []


@pytest.mark.parametrize(
    "module, line, fault",
    [
        ("mmed_jax.common.jsonl", "def f():\n    import mmed_jax.plan", "mmed_jax.common.jsonl -> mmed_jax.plan"),
        ("mmed_jax.hf.load", "from mmed_jax.llm_api import client", "mmed_jax.hf.load -> mmed_jax.llm_api.client"),
        ("mmed_jax.train", "from mmed_jax.plan import main", "mmed_jax.train -> mmed_jax.plan"),
        ("mmed_jax.train", "from configs import stage1", "mmed_jax.train -> configs.stage1"),
        ("mmed_jax.data.pack", "from ..hf import load", "mmed_jax.data.pack -> mmed_jax.hf.load"),
        ("mmed_jax.data.pack", "import_module('mmed_jax.hf.load')", "mmed_jax.data.pack -> mmed_jax.hf.load"),
        ("data_gen.sets.steps", "import data_gen.commands.build", "data_gen.sets.steps -> data_gen.commands.build"),
        ("data_gen.commands.build", "from data_gen.sets import run_steps", ""),
        ("mmed_jax.data.pack", "from mmed_jax.common.jsonl import read", ""),
        ("mmed_jax.train", "from mmed_jax import __version__", ""),
        ("mmed_jax.data.pack", "from mmed_jax import Model", "mmed_jax.data.pack -> mmed_jax.hf.load"),
        ("mmed_jax.train", "from mmed_jax import Model", ""),
    ],
)
def test_faults_are_found(tmp_path, module, line, fault):
    """On a small tree of its own, whatever form the import has."""
    assert upward_imports(plant(tmp_path, {module: line})) == ({fault} if fault else set())


def test_circles_and_names_are_found(tmp_path):
    tree = {
        "mmed_jax.data.pack": "def f():\n    from mmed_jax.data.chat import g",
        "mmed_jax.data.chat": "from mmed_jax.data import loader",
        "mmed_jax.data.loader": "import mmed_jax.data.pack",
        "mmed_jax.plan": "importlib.import_module(f'data_gen.commands.{name}')",
    }
    root = plant(tmp_path, tree)
    assert circles(imports(root)) == [["mmed_jax.data.chat", "mmed_jax.data.loader", "mmed_jax.data.pack"]]
    assert foreign_names(root) == {"mmed_jax.plan -> data_gen.commands."}


def plant(root, contents: dict[str, str]):
    """A source tree with empty modules, and `contents` in some of them."""
    empty = "common.jsonl data.pack data.chat data.loader hf.load llm_api.client train plan".split()
    names = [f"mmed_jax.{n}" for n in empty]
    names += ["configs.stage1", "data_gen.sets.steps", "data_gen.commands.build"]
    for name in names:
        path = root / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(contents.get(name, "") + "\n", encoding="utf-8")
    hands_on = "def __getattr__(name):\n    from mmed_jax.hf.load import Model\n\n    return Model\n"
    (root / "mmed_jax" / "__init__.py").write_text(hands_on, encoding="utf-8")
    return root


# Packages that take a second of a start, and the modules that may import them at their top.
HEAVY = {
    "datasets": set(),
    "datasketch": set(),
    "flax": {"mmed_jax.model.nnx_llama", "mmed_jax.inference.pretrained"},
    "pandas": set(),
    "scipy": set(),
    "tensorflow": set(),
    "torch": set(),
    "transformers": set(),
}


def test_what_takes_long_to_import_is_imported_where_it_is_used(repo):
    found: dict[str, set[str]] = {name: set() for name in HEAVY}
    for module in modules(repo).values():
        for node in module.tree.body if not module.name.startswith("scripts.") else ():
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for package in {name.partition(".")[0] for name in names} & HEAVY.keys():
                found[package].add(module.name)
    assert found == HEAVY
