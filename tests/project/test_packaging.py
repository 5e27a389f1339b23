"""The built and installed package, and its declarations in pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
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

# The matrix runs the tests through a link, which `resolve` follows to the project.
PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "collectfast_storage"


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


def test_matrix_tests_the_wheel() -> None:
    """The matrix tests the installed wheel, and other runs test the checkout."""
    in_matrix = "TEST_ENVIRONMENT" in os.environ
    installed = Path(sysconfig.get_path("purelib"))
    imported = Path(collectfast_storage.__file__).parent
    assert imported == (installed / PACKAGE.name if in_matrix else PACKAGE)


def test_files_of_the_source_distribution(tmp_path: Path) -> None:
    """The source distribution has the package and its documents, but no tests."""
    with tarfile.open(_build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    documents = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "PKG-INFO"}
    # Hatchling always adds .gitignore.
    assert names == _package() | documents | {".gitignore"}


def test_files_of_the_wheel(tmp_path: Path) -> None:
    """The wheel has the package, including `py.typed`, and metadata, but no tests."""
    with zipfile.ZipFile(_build("wheel", tmp_path)) as archive:
        names = {*archive.namelist()}
        metadata = next(name for name in names if name.endswith("/METADATA"))
    folder = metadata.partition("/")[0]
    files = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    assert names == _package() | {f"{folder}/{name}" for name in files}
    assert "collectfast_storage/py.typed" in names


def test_wheel_of_the_source_distribution_is_the_same(tmp_path: Path) -> None:
    """A wheel that is built from the source distribution has the same files."""
    with tarfile.open(_build("sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = (path.parent for path in tmp_path.glob("*/pyproject.toml"))
    built = _build("wheel", tmp_path, unpacked)
    wheel = _build("wheel", unpacked)
    assert _metadata(built) == _metadata(wheel)
    with zipfile.ZipFile(built) as ours, zipfile.ZipFile(wheel) as other:
        assert {*ours.namelist()} == {*other.namelist()}


def test_description_differs_from_the_readme_in_links_only(tmp_path: Path) -> None:
    """The description on PyPI has all lines of the README; only links may differ."""
    _, _, description = _metadata(_build("wheel", tmp_path)).partition("\n\n")
    readme = (PROJECT / "README.md").read_text()
    lines = zip(description.splitlines(), readme.splitlines(), strict=True)
    changed = [line for shown, line in lines if shown != line]
    assert changed
    assert [line for line in changed if not {"[", "]"} & {*line}] == []


@pytest.mark.parametrize("address", ["", "https://example.com/owner/name/blob/main"])
def test_package_page_has_no_relative_links(tmp_path: Path, address: str) -> None:
    """Links on the page of PyPI are absolute if the repository's address is set.

    Without the address, the text names the files instead.
    """
    render = pytest.importorskip("readme_renderer.markdown").render
    project = tmp_path / "project"
    shutil.copytree(PACKAGE, project / PACKAGE.name)
    for name in ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(PROJECT / name, project)
    if address:
        settings = (project / "pyproject.toml").read_text()
        assert settings.count("= '](unknown:") == 1  # One variable is enough.
        settings = settings.replace("= '](unknown:", f"= ']({address}")
        (project / "pyproject.toml").write_text(settings)
    text = _metadata(_build("wheel", tmp_path, project))
    assert "Description-Content-Type: text/markdown\n" in text
    page = render(text.partition("\n\n")[2])
    assert page is not None
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    anchors = {f"#{each}" for each in re.findall(r'id="([^"]*)"', page)}
    others = [link for link in links if link not in anchors]
    assert [link for link in others if not link.startswith("https://")] == []
    ours = {link for link in others if "example.com" in link}
    for name in ("docs/servers.md", ".github/CONTRIBUTING.md"):
        assert (f"{address}/{name}" in ours) is bool(address)
        assert (f"<code>{name}</code>" in page) is not bool(address)
    picture = f"{address.replace('/blob/', '/raw/')}/tests/benchmark/chart.svg"
    assert (f'<img src="{picture}"' in re.sub(r' alt="[^"]*"', "", page)) is bool(
        address
    )


def test_twine_accepts_the_distributions(tmp_path: Path) -> None:
    """PyPI would accept the files, and can render their description."""
    pytest.importorskip("twine")
    files = [str(_build(kind, tmp_path)) for kind in ("wheel", "sdist")]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_classifiers_equal_the_matrix(pyproject: dict[str, Any]) -> None:
    """The classifiers name exactly the versions of Python and Django in the matrix."""
    environments = " ".join(pyproject["tool"]["tox"]["env_list"])
    classifiers = pyproject["project"]["classifiers"]
    pythons = {f"3.{minor}" for minor in re.findall(r"\bpy3(\d+)", environments)}
    djangos = {".".join(v) for v in re.findall(r"-django(\d)(\d)\b", environments)}
    assert _versions(classifiers, "Programming Language :: Python") == pythons
    assert _versions(classifiers, "Framework :: Django") == djangos
    assert pyproject["project"]["requires-python"] == f">={min(pythons)}"
    assert f"Django>={min(djangos)}" in pyproject["project"]["dependencies"]


def test_workflow_runs_the_matrix(pyproject: dict[str, Any]) -> None:
    """The workflow runs each environment of tox with the right Python.

    Without this Python, tox would skip the environment.
    """
    workflow = (PROJECT / ".github/workflows/tests.yml").read_text()
    runs = re.findall(r'python: "3\.(\d+)", environment: (\S+) ', workflow)
    assert [name for _, name in runs] == pyproject["tool"]["tox"]["env_list"]
    assert [name for minor, name in runs if not name.startswith(f"py3{minor}-")] == []


@pytest.mark.skipif(
    not os.environ.get("TEST_ENVIRONMENT", "").endswith("-lowest"),
    reason="only `make lowest` installs the oldest versions",
)
def test_lowest_environment_has_the_oldest_versions(pyproject: dict[str, Any]) -> None:
    """`make lowest` tests the oldest version of each dependency that is allowed."""
    needed = [Requirement(each) for each in pyproject["project"]["dependencies"]]
    oldest = {each.name: str(each.specifier).replace(">=", "==") for each in needed}
    installed = {name: version(name) for name in oldest}
    assert [n for n in oldest if installed[n] not in SpecifierSet(oldest[n])] == []


def test_changelog_begins_with_this_version(pyproject: dict[str, Any]) -> None:
    """The first version in the changelog is the version of the package."""
    changelog = (PROJECT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == pyproject["project"]["version"]


def test_readme_names_every_extra(pyproject: dict[str, Any]) -> None:
    """The README names each extra of the package in brackets."""
    readme = (PROJECT / "README.md").read_text()
    extras = pyproject["project"]["optional-dependencies"]
    assert [extra for extra in extras if f"[{extra}]" not in readme] == []


def _versions(classifiers: list[str], prefix: str) -> set[str]:
    found = (re.fullmatch(rf"{prefix} :: (\d+\.\d+)", each) for each in classifiers)
    return {match[1] for match in found if match}


def _package() -> set[str]:
    files = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    return {path.relative_to(PROJECT).as_posix() for path in files}


def _metadata(wheel: Path) -> str:
    """Return the metadata in `wheel`, which end with the description."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = (n for n in archive.namelist() if n.endswith("/METADATA"))
        return archive.read(name).decode()


def _build(kind: str, folder: Path, project: Path = PROJECT) -> Path:
    """Build `project` by its build backend, as pip does, and return the file."""
    code = f"from hatchling.build import *; print(build_{kind}({str(folder)!r}))"
    command = [sys.executable, "-c", code]
    built = subprocess.run(command, cwd=project, capture_output=True, check=True)
    return folder / built.stdout.decode().split()[-1]
