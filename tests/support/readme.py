"""The README and the other pages, divided into parts that tests can run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.bucket import BucketView

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / ".github").glob("*.md")])
TEXT = "\n".join([README, *(page.read_text() for page in PAGES)])

# Pages whose snippets are run by a test module of their own: test_testing_page.py and
# test_deploying_page.py.
APART = ("testing.md", "deploying.md")
REST = "\n".join([README, *(p.read_text() for p in PAGES if p.name not in APART)])


def snippets(language: str, start: str = "", page: str = "") -> list[str]:
    """Return the fenced snippets of `language` with a line that begins with `start`.

    They are those of `page`, or those of the README and of all pages not in `APART`.
    """
    text = (ROOT / "docs" / page).read_text() if page else REST
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [each for each in found if f"\n{start}" in f"\n{each}"]


def snippet(language: str, start: str, page: str) -> str:
    """Return the only snippet of `page` with a line that begins with `start`."""
    [found] = snippets(language, start, page)
    return found


def section(title: str) -> str:
    """Return the text below a heading, up to the next heading of any level."""
    _, _, text = TEXT.partition(f"# {title}\n")
    assert text, f"No page has a section {title!r}."
    return re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]


def rows(title: str) -> list[list[str]]:
    """Return the cells of the first table of a section, without its head."""
    table = re.search(r"(?:^\|.*\n)+", section(title), re.MULTILINE)
    lines = table[0].splitlines() if table else []
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return cells[2:]


def settings_with(snippet: str, bucket: BucketView) -> str:
    """Return the snippet with a bucket that exists, and an unused location in it."""
    return snippet.replace('"my-bucket"', repr(bucket.name)).replace(
        '"location": "static"', f'"location": {bucket.location!r}'
    )
