"""The modules of the source tree, and what imports what, by syntax tree alone: nothing is imported to find out."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

TOP = ("mmed_jax", "data_gen", "configs", "scripts")
# A name in a string that these calls take is an import as well.
_BY_NAME = ("import_module", "find_spec", "__import__", "run_module")


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name (a package has its folder's), its path, its syntax tree and all nodes of that."""

    name: str
    path: Path
    tree: ast.Module
    nodes: tuple[ast.AST, ...]

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


@functools.cache
def modules(root: Path) -> dict[str, Module]:
    """Every module below the folders TOP of `root`, by dotted name."""
    found = {}
    for path in sorted(p for top in TOP for p in (root / top).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        found[name] = Module(name, path, tree, tuple(ast.walk(tree)))
    return found


@functools.cache
def imports(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of the tree it imports anywhere: at the top, in a function, or by a name in a string.

    The package `mmed_jax` itself counts for nothing: it holds the version. Who takes another name that it hands on
    imports the modules that it has them from.
    """
    tree = modules(root)
    edges, taking = {}, []
    for module in tree.values():
        names = _imported_names(module, tree)
        nearest = {_nearest(name, tree) for name in names}
        edges[module.name] = nearest - {"", module.name, "mmed_jax"}
        if any(_nearest(name, tree) == "mmed_jax" != name.removesuffix(".__version__") for name in names):
            taking.append(module.name)
    for name in taking:
        edges[name] |= edges["mmed_jax"] - {name}
    return edges


def names_in_import_calls(module: Module) -> list[str]:
    """Strings (of f-strings the beginning) in a module that imports by name; [] in one that does not."""
    if not any(isinstance(n, ast.Call) and _called(n.func) in _BY_NAME for n in module.nodes):
        return []
    return [n.value for n in module.nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan's strong components), sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return sorted(groups)


def _imported_names(module: Module, tree: dict[str, Module]) -> list[str]:
    names = [name for name in names_in_import_calls(module) if name in tree and "." in name]
    for node in module.nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x
                own = module.name.split(".")[: None if module.is_package else -1]
                base = ".".join([*own[: len(own) - node.level + 1], *filter(None, [node.module])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def _nearest(name: str, tree: dict[str, Module]) -> str:
    """The module that holds `name`, which may be of a function in it; "" for one of another package."""
    while name and name not in tree:
        name = name.rpartition(".")[0]
    return name


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
