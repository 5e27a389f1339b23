"""What the key of an object may be, and where it may be written.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
"""

from __future__ import annotations

import re

_LONGEST = 1024
# What XML cannot carry, not even as a character reference:
# https://www.w3.org/TR/xml/#charsets
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def is_utf8(key: str) -> bool:
    """Tell whether `key` can be sent; a file name of other bytes has surrogates."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_possible(key: str) -> bool:
    """Tell whether an object can have this `key`."""
    return is_utf8(key) and len(key.encode()) <= _LONGEST


def fits_xml(key: str) -> bool:
    """Tell whether `key` can be named in a request for many."""
    return not _NOT_XML.search(key)
