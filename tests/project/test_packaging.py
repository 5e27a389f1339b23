"""What is built and installed, and what pyproject.toml says of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import collectfast_storage

# In the matrix the tests are reached by a link, which ends where the project is.
PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "collectfast_storage"


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


def test_what_is_tested_is_what_the_environment_has() -> None:
    """In the matrix the wheel, as users get it; elsewhere the checkout."""
    in_matrix = "TEST_ENVIRONMENT" in os.environ
    installed = Path(sysconfig.get_path("purelib"))
    imported = Path(collectfast_storage.__file__).parent
    assert imported == (installed / PACKAGE.name if in_matrix else PACKAGE)


def test_source_distribution_has_the_package_and_its_papers(tmp_path: Path) -> None:
    """And neither tests nor what belongs to the repository."""
    with tarfile.open(_build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    papers = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "PKG-INFO"}
    # Hatchling always adds the last.
    assert names == _package() | papers | {".gitignore"}


def test_wheel_has_the_package_and_nothing_else(tmp_path: Path) -> None:
    """With the marker by which type checkers know that it is typed."""
    with zipfile.ZipFile(_build("wheel", tmp_path)) as archive:
        names = {*archive.namelist()}
        metadata = next(name for name in names if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    folder = metadata.partition("/")[0]
    files = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    assert names == _package() | {f"{folder}/{name}" for name in files}
    assert "collectfast_storage/py.typed" in names
    readme = (PROJECT / "README.md").read_text()
    assert text.endswith(readme)


def test_classifiers_are_what_the_matrix_tests(pyproject: dict[str, Any]) -> None:
    """No Python and no Django is promised that is not tested, nor the reverse."""
    environments = " ".join(pyproject["tool"]["tox"]["env_list"])
    classifiers = pyproject["project"]["classifiers"]
    pythons = {f"3.{minor}" for minor in re.findall(r"\bpy3(\d+)", environments)}
    djangos = {".".join(v) for v in re.findall(r"-django(\d)(\d)\b", environments)}
    assert _versions(classifiers, "Programming Language :: Python") == pythons
    assert _versions(classifiers, "Framework :: Django") == djangos
    assert pyproject["project"]["requires-python"] == f">={min(pythons)}"
    assert f"Django>={min(djangos)}" in pyproject["project"]["dependencies"]


def test_workflow_runs_the_matrix(pyproject: dict[str, Any]) -> None:
    """Each of tox's environments, with its Python: tox skips those it has none for."""
    workflow = (PROJECT / ".github/workflows/tests.yml").read_text()
    runs = re.findall(r'python: "3\.(\d+)", environment: (\S+) ', workflow)
    assert [name for _, name in runs] == pyproject["tool"]["tox"]["env_list"]
    assert [name for minor, name in runs if not name.startswith(f"py3{minor}-")] == []


@pytest.mark.skipif(
    not os.environ.get("TEST_ENVIRONMENT", "").endswith("-lowest"),
    reason="not where the oldest of everything is installed: make lowest",
)
def test_lowest_has_the_oldest_that_is_allowed(pyproject: dict[str, Any]) -> None:
    """What a dependency is said to be at least is what was tested."""
    needed = [Requirement(each) for each in pyproject["project"]["dependencies"]]
    oldest = {each.name: str(each.specifier).replace(">=", "==") for each in needed}
    installed = {name: version(name) for name in oldest}
    assert [n for n in oldest if installed[n] not in SpecifierSet(oldest[n])] == []


def test_changelog_begins_with_this_version(pyproject: dict[str, Any]) -> None:
    changelog = (PROJECT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == pyproject["project"]["version"]


def test_readme_names_every_extra(pyproject: dict[str, Any]) -> None:
    readme = (PROJECT / "README.md").read_text()
    extras = pyproject["project"]["optional-dependencies"]
    assert [extra for extra in extras if f"[{extra}]" not in readme] == []


def _versions(classifiers: list[str], prefix: str) -> set[str]:
    found = (re.fullmatch(rf"{prefix} :: (\d+\.\d+)", each) for each in classifiers)
    return {match[1] for match in found if match}


def _package() -> set[str]:
    files = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    return {path.relative_to(PROJECT).as_posix() for path in files}


def _build(kind: str, folder: Path) -> Path:
    """Build as pip does, by the hook of the project's build backend."""
    code = f"from hatchling.build import *; print(build_{kind}({str(folder)!r}))"
    command = [sys.executable, "-c", code]
    built = subprocess.run(command, cwd=PROJECT, capture_output=True, check=True)
    return folder / built.stdout.decode().split()[-1]
