"""Private names of libraries that the package uses, with the reason for each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import collectfast_storage

PACKAGE = Path(collectfast_storage.__file__).parent

# The private names that the package may use, and the reasons.
ALLOWED = {
    "_getframe": "CPython's documented sys._getframe, the only way to find the caller",
    "_wrapped": "Django's LazyObject keeps the object in it that it stands for",
    "_normalize_name": "django-storages' hook for subclasses: the key of a name",
    "_save": "Django's documented hook for storages",
    "_open": "Django's documented hook for storages",
    "_compress_content": "django-storages' hook for subclasses: gzip",
    "_create_session": "django-storages' hook for subclasses: credentials",
}
# Names with this prefix belong to the package, whatever object they are used on.
OURS = "_collectfast_"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_own(node: ast.expr) -> bool:
    """Return whether `node` is `self`, `cls` or ``super()``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _defined(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module defines or assigns."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=value, attr=name, ctx=ast.Store()):
                if _is_own(value):
                    yield name
            case ast.AnnAssign(target=ast.Attribute(attr=name)):
                yield name


def _touched(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Yield the line and name of each use of a private name, and whether on `self`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name):
                found = [(name, _is_own(value))]
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr"),
                args=[value, ast.Constant(value=str(name)), *_],
            ):
                found = [(name, _is_own(value))]
            case ast.Import(names=names):
                parts = [part for each in names for part in each.name.split(".")]
                found = [(part, False) for part in parts]
            case ast.ImportFrom(module=module, names=names):
                parts = [*(module or "").split("."), *(each.name for each in names)]
                found = [(part, False) for part in parts]
            case _:
                continue
        for name, is_own in found:
            if _is_private(name):
                yield node.lineno, name, is_own


def _check(sources: dict[str, str]) -> tuple[list[str], set[str]]:
    """Return the violations in `sources`, and the names in `ALLOWED` that are used."""
    trees = {name: ast.parse(source) for name, source in sources.items()}
    ours = {name for tree in trees.values() for name in _defined(tree)}
    violations, used = [], set()
    for module, tree in trees.items():
        for line, name, is_own in _touched(tree):
            if name in ALLOWED:
                used.add(name)
            elif not (name in ours if is_own else name.startswith(OURS)):
                violations.append(f"{module}:{line}: {name}")
    return violations, used


def _sources() -> dict[str, str]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {str(file.relative_to(PACKAGE)): file.read_text() for file in files}


def test_package_uses_no_private_names_of_libraries() -> None:
    """The package uses no private names of libraries, because updates may remove them.

    A private name on `self` has to be defined by the package. On any other object it
    has to begin with the package's prefix.
    """
    sources = _sources()
    assert len(sources) > 10
    violations, _ = _check(sources)
    assert violations == []


def test_all_allowed_names_are_used() -> None:
    """The package uses each of the private names that it may use."""
    _, used = _check(_sources())
    assert used == {*ALLOWED}


def test_violations_are_found() -> None:
    """Uses of private names are found in all forms; a class may use its own names."""
    source = """
import botocore._vendored
from urllib3 import _collections
from http.client import HTTPConnection

class Own:
    _known: int = 0

    def __init__(self, client, storage):
        self._set = client._endpoint
        self._known = self._set = storage._collectfast_prefix
        self._theirs
        super()._connections
        client.meta.events._emitter.emit()
        getattr(client, "_request_signer", None)
        setattr(client, "_request_signer", None)
        storage._set
        storage._save(client.__class__.__name__)
"""
    violations, used = _check({"own.py": source})
    assert sorted(each.partition(": ")[2] for each in violations) == [
        "_collections",
        "_connections",
        "_emitter",
        "_endpoint",
        "_request_signer",
        "_request_signer",
        "_set",
        "_theirs",
        "_vendored",
    ]
    assert used == {"_save"}
