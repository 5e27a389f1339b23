"""The README and the pages that it leads to, in parts that can be run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.bucket import BucketView

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / ".github").glob("*.md")])
TEXT = "\n".join([README, *(page.read_text() for page in PAGES)])


def snippets(language: str, start: str = "") -> list[str]:
    """The fenced snippets of `language` that have a line that begins with `start`."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [each for each in found if f"\n{start}" in f"\n{each}"]


def section(title: str) -> str:
    """What is below a heading, up to the next one of any level."""
    _, _, text = TEXT.partition(f"# {title}\n")
    assert text, f"The README has no section {title!r}."
    return re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the first table of a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return cells[2:]


def settings_with(snippet: str, bucket: BucketView) -> str:
    """The snippet, with a bucket that there is and a place in it that is free."""
    return snippet.replace('"my-bucket"', repr(bucket.name)).replace(
        '"location": "static"', f'"location": {bucket.location!r}'
    )
