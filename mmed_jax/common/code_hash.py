"""A hash of what code does: the key of results that are kept and must be made anew when other code would make them.

    code_hash(["mmed_jax.data.prepare"], leave_out=["mmed_jax.common.console"])

covers the entry modules and every module of their packages that they import, directly or through others, also inside
functions. The sources are parsed, nothing is imported. Syntax trees count: comments, docstrings and formatting do not.
Imports that only a type checker sees are not followed.
"""

import ast
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

# The folder that holds the package of this module.
ROOT = Path(__file__).resolve().parents[2]


class MissingModule(Exception):
    """A module that is named as an entry, imported or left out is not there: a hash without it would miss changes."""


def code_hash(entries: Collection[str], *, leave_out: Collection[str] = (), root: Path = ROOT) -> str:
    """SHA-256 (hex) over the syntax trees of the import closure of `entries`.

    Args:
      entries: dotted names of modules.
      leave_out: modules, or packages with all in them, that decide nothing of what is kept (what writes to a terminal,
        say): neither they nor what only they import counts.
      root: folder that holds the packages of the entries.

    Raises:
      MissingModule: see there.
    """
    digest = hashlib.sha256()
    for name, tree in import_closure(entries, leave_out=leave_out, root=root).items():
        digest.update(name.encode() + b"\0" + dump(tree) + b"\0")
    return digest.hexdigest()


def import_closure(
    entries: Collection[str], *, leave_out: Collection[str] = (), root: Path = ROOT
) -> dict[str, ast.Module]:
    """{module: syntax tree} of the entries and all that they import of their own packages; arguments as above."""
    packages = {name.partition(".")[0] for name in entries}
    closure: dict[str, ast.Module] = {}
    waiting = [(name, "an entry") for name in entries]
    for name in leave_out:
        _file_of(name, root, "left out")
    while waiting:
        name, origin = waiting.pop()
        if name not in closure and not any(name == out or name.startswith(f"{out}.") for out in leave_out):
            path = _file_of(name, root, origin)
            closure[name] = tree = ast.parse(path.read_text(encoding="utf-8"))
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            imported = _imports(tree, package.split("."), packages, root)
            waiting += [(module, f"imported by {name}") for module in imported]
    return dict(sorted(closure.items()))


def dump(tree: ast.Module) -> bytes:
    """A syntax tree as text, without comments and docstrings (which are taken out of it)."""
    inner: list[ast.AST] = [tree]
    while inner:
        node = inner.pop()
        inner += _statements(node)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
    return ast.dump(tree).encode()


def _file_of(name: str, root: Path, origin: str) -> Path:
    """Source of a module. Raises MissingModule."""
    path = _find(name, root)
    if path is None:
        raise MissingModule(f"{name} ({origin}) is no module below {root}")
    return path


def _find(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.Module, package: list[str], packages: Collection[str], root: Path) -> Iterator[str]:
    """Modules of `packages` that a module in `package` imports; of `from a.b import c` a.b.c if that is one, else a.b.

    (The packages above them run on import as well, but decide nothing: what an __init__ defines is named when used.)
    """
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in packages)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            if source.partition(".")[0] not in packages:
                continue
            for alias in node.names:
                yield f"{source}.{alias.name}" if _is_submodule(source, alias.name, root) else source


def _is_submodule(package: str, name: str, root: Path) -> bool:
    """Whether a name imported from a package is a module; one that its __init__ does not bind must be."""
    path = _find(package, root)
    if path is None or path.name != "__init__.py":
        return False
    return _find(f"{package}.{name}", root) is not None or not _binds(path, name)


def _binds(path: Path, name: str) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name in (
            name,
            "__getattr__",
        ):
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.alias) and (node.asname or node.name).partition(".")[0] == name:
            return True
    return False


def _running(tree: ast.AST) -> Iterator[ast.stmt]:
    """All statements but those that only a type checker sees (`if TYPE_CHECKING:`)."""
    for node in _statements(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from _running(other)
        else:
            yield node
            yield from _running(node)


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements directly within a node. Of a tree's nodes one in ten is one, and a start waits for this walk."""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        inner = getattr(node, field, None)
        for part in inner if isinstance(inner, list) else ():  # of `x if y else z` and of a lambda it is an expression
            if isinstance(part, ast.stmt):
                yield part
            else:
                yield from _statements(part)
