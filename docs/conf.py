"""How Sphinx makes the documentation site of the pages in this folder: `make docs`.

Nothing is fetched: the theme's styles come with its package, and no other site's inventory is used.
The reference of Python names is read from docstrings, that of commands from their help. Pages of
docs/ and of the top of the repository are written for a forge, too: links in them are files.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "antigram"
author = "The antigram developers"
copyright = f"{author}; Apache-2.0"
release = version = installed("antigram")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are described in their class
default_role = "code"  # `name` in a docstring

html_theme = "furo"
html_title = f"antigram {release}"
html_copy_source = False
html_show_sphinx = False

# Pages at the top of the repository, and what they are called on the site.
_TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_INCLUDE = re.compile(r"^```\{include\} \.\./(\S+)\n```$", re.MULTILINE)
_COMMANDS = "```{commands}\n```"
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)\s#]+")
_COLUMNS = 88  # of a command's help


def _on_site(link: str, folder: str) -> str:
    """Where a link of a page in a folder of the repository leads, from a page of the site."""
    path = (ROOT / folder / link).resolve().relative_to(ROOT).as_posix()
    inside = path.removeprefix("docs/")
    return _TOP.get(path, inside if inside != path else f"../{path}")


def _rewrite(text: str, folder: str) -> str:
    return _LINK.sub(lambda found: _on_site(found[0], folder), text)


def _help() -> str:
    """Each command's help, under a heading of its own."""
    from antigram.cli import app

    top = click.Context(app, info_name="antigram")
    sections = []
    for name in ("", *app.list_commands(top)):
        command = app.get_command(top, name) if name else app
        assert command is not None
        context = click.Context(
            command,
            info_name=name or "antigram",
            parent=top if name else None,
            terminal_width=_COLUMNS,
        )
        sections.append(f"## {name or 'antigram'}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(sections)


def _fill(app: Sphinx, _page: str, source: list[str]) -> None:
    """Put the pages of the top and the help of the commands in their places."""

    def included(found: re.Match[str]) -> str:
        path = ROOT / found[1]
        app.env.note_dependency(str(path))
        return _rewrite(path.read_text("utf-8"), ".")

    text = _INCLUDE.sub(included, _rewrite(source[0], "docs"))
    source[0] = text.replace(_COMMANDS, _help()) if _COMMANDS in text else text


def setup(app: Sphinx) -> None:
    """Connect the above; Sphinx calls this."""
    app.connect("source-read", _fill)
