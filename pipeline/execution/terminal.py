"""Text as it may be shown: names come from other people's files, and terminals obey what they say.

A control character in a file's name can move the cursor, recolour or retitle a window; marks of
direction make a name read as another. Both are shown as escapes, and so is what is not UTF-8, which
could not be printed at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["safe", "safe_json"]

# C0 without tab and line feed, DEL and C1; line, paragraph and direction marks; half surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def safe(text: str) -> str:
    r"""The text with everything that a terminal might obey written as an escape (``\x1b``)."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def safe_json(content: Mapping[str, Any]) -> str:
    """JSON text of the same value, on one line, whose strings hold no such character as it is."""
    text = json.dumps(content, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
