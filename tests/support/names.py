"""File names with characters that URLs, XML, paths or signatures treat specially."""

from __future__ import annotations

import unicodedata

NAMES = [
    "with space.css",
    " leading space.css",
    "trailing space ",
    "plus+plus.css",
    "per%20cent.css",
    "%2e%2e.css",
    "%2e%2e",
    "%2B.css",
    "...",
    "dir./file.",
    ".hidden.css",
    "tilde~",
    "amp&ersand.css",
    "hash#tag.css",
    "semi;colon.css",
    "quote'\"<tag>.css",
    "cdata]]>.css",
    "new\nline.css",
    "carriage\rreturn.css",
    "both\r\n.css",
    "tab\t.css",
    "control\x01.css",
    "vertical\x0btab.css",
    "delete\x7f.css",
    "next\x85line.css",
    "line\u2028separator.css",
    "non\uffffcharacter.css",
    "equals=question?.css",
    "dir with space/~tilde.css",
    "ünï/çödé-文.css",
    "emoji-\U0001f600.css",
    unicodedata.normalize("NFC", "café.css"),
    unicodedata.normalize("NFD", "café.css"),
]
