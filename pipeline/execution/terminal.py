"""Make text safe to print on a terminal.

Names come from other people's files. A control character in a file name can move the cursor, change
colours or retitle a window, and direction marks can make a name look like another name. Both are
printed as escapes, and so are bytes that are not UTF-8, which could not be printed at all.
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
    r"""Return the text with unsafe characters for a terminal replaced by escapes like ``\x1b``."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def safe_json(content: Mapping[str, Any]) -> str:
    """Return a value as one line of JSON, with the characters that `safe` replaces escaped."""
    text = json.dumps(content, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
