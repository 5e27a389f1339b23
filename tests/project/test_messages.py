"""The page of messages, which explains all messages of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import collectfast_storage

PACKAGE = Path(collectfast_storage.__file__).parent
PAGE = Path(__file__).resolve().parents[2] / "docs" / "messages.md"
# Texts in the source that are not messages: patterns of other libraries' messages,
# names of internal states, and errors that the package itself catches.
SILENT = (
    r".*when calling.*",
    r".*\(\?i\).*|.*https\?.*|.*\[!-~\].*|status \(.*",
    r"SSL validation failed.*|Parameter valid.*|Invalid header value ",
    r"start new thread.*",
    r"a HEAD request is needed",
    r"A subclass overrides save\.|No earlier time exists\.",
    r"[…:, ]*",
    r"… MB uploaded|Failed for …",
)


def _sentences(tree: ast.Module) -> Iterator[str]:
    """Yield all texts of more than two words, with … in place of variables."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [*ast.walk(tree)]
    parts = {
        id(part) for n in nodes if isinstance(n, ast.JoinedStr) for part in ast.walk(n)
    }
    docstrings = {
        id(n.body[0].value)
        for n in nodes
        if isinstance(n, documented) and isinstance(n.body[0], ast.Expr)
    }
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            values = [getattr(each, "value", None) for each in node.values]
            text = "".join(v if isinstance(v, str) else "…" for v in values)
        elif isinstance(node, ast.Constant) and id(node) not in parts | docstrings:
            text = node.value if isinstance(node.value, str) else ""
        else:
            continue
        text = re.sub(r"%[rsd]|\{\w*\}", "…", text)
        if text.count(" ") >= 2:
            yield text


def _is_silent(text: str) -> bool:
    return any(re.fullmatch(pattern, text) for pattern in SILENT)


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip("… .")


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "checks.py"],
    ids=lambda path: path.stem,
)
def test_every_message_is_explained(path: Path) -> None:
    """The page contains each message of the module, word for word.

    The messages of the checks are left out, because a table lists their ids.
    """
    page = _normal(PAGE.read_text())
    said = {*_sentences(ast.parse(path.read_text()))}
    missing = {e for e in said if not _is_silent(e) and _normal(e) not in page}
    assert missing == set()


def test_every_message_on_the_page_is_in_the_source() -> None:
    """Each text in bold on the page is part of a message in the source."""
    sources = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    said = [_normal(each) for tree in sources for each in _sentences(tree)]
    explained = re.findall(r"\*\*(.+?)\*\*", _normal(PAGE.read_text()))
    assert len(explained) > 40
    strange = [e for e in explained if not any(_normal(e) in text for text in said)]
    assert strange == []


def _tables() -> Iterator[list[str]]:
    """Yield the rows of each table on the page that begin with a message."""
    for part in PAGE.read_text().split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith('| <a id="')]
        if lines:
            yield lines


def test_every_message_has_an_anchor() -> None:
    """A link can point at each message, because no two anchors are the same."""
    anchors = re.findall(r'<a id="([a-z0-9-]+)"></a>', PAGE.read_text())
    assert len(anchors) == len({*anchors}) > 40
    starts = re.findall(r"^\| \*\*.*", PAGE.read_text(), re.MULTILINE)
    assert [each for each in starts if "collectfast_… (" not in each] == [
        "| **environment variable COLLECTFAST_IGNORE_ETAG** | **1 or 0** |",
        "| **option bucket_name (setting AWS_STORAGE_BUCKET_NAME)** "
        "| **the name of the bucket** |",
    ]


def test_messages_are_in_alphabetical_order() -> None:
    """A reader finds a message by its first words in the table of its group."""
    for rows in _tables():
        texts = [re.sub(r"<a .*?</a>|[^a-z ]", "", row.lower()).strip() for row in rows]
        assert texts == sorted(texts)
