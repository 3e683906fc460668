"""Render a page from templates, which escape every value and fail on a missing one."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Term:
    """A term as it is printed, and its definition."""

    title: str
    text: str


def environment(package: str, glossary: Mapping[str, Term]) -> Environment:
    """The templates of a package, and those beside this module. `glossary`: the page's definitions, by key."""
    loader = ChoiceLoader([PackageLoader(package), PackageLoader(__package__)])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

    def asset(name: str) -> Markup:
        """A style sheet or script, unescaped."""
        return Markup(loader.get_source(made, name)[0])

    made.globals |= {"GLOSSARY": glossary, "asset": asset}
    made.filters["code"] = code
    return made


def code(text: str) -> Markup:
    """Return the text as HTML, with code between backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def packed(text: str) -> str:
    """The text compressed, as a part of the page that `unpack` in figures.js reads."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()
