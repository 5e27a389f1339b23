"""The modules of the test suite: their names, folders and imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]


def _imported(tree: ast.AST) -> Iterator[str]:
    """Yield the last part of each module that `tree` may import."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (each.name.rpartition(".")[2] for each in names)
            case ast.ImportFrom(module=module, names=names):
                yield (module or "").rpartition(".")[2]
                yield from (each.name for each in names)


def test_no_module_imports_a_test_module() -> None:
    """No module imports a test module, because shared helpers belong to support/."""
    test_modules = {path.stem for path in TESTS.glob("*/test_*.py")}
    assert len(test_modules) > 50
    imports = {
        f"{path.relative_to(TESTS)}: {name}"
        for path in TESTS.rglob("*.py")
        for name in _imported(ast.parse(path.read_text()))
        if name in test_modules
    }
    assert imports == set()


def test_names_of_test_modules_are_unique() -> None:
    """Each test module has another name, so that `pytest -k` can select it."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert len(names) == len({*names})


def test_each_test_module_is_in_a_folder() -> None:
    """Every test module is in the folder of its subject, not next to conftest.py."""
    assert [*TESTS.glob("test_*.py")] == []
    assert {path.parent.parent for path in TESTS.rglob("test_*.py")} == {TESTS}
