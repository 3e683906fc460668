"""An HTML page around a body: style, definitions and scripts inside, nothing to load."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from orchestrator.compare.report.html import glossary


def document(title: str, body: str, scripts: tuple[str, ...], data: str = "") -> str:
    """`body` is HTML with its own `main`; `scripts` are names of files beside this one; `data` follows the body."""
    assets = files("orchestrator.compare.report")
    code = "".join(f"<script>{(assets / name).read_text()}</script>\n" for name in scripts)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<link rel='icon' href='data:,'><style>{(assets / 'page.css').read_text()}</style></head>\n<body>{body}\n"
        f"<section id='definitions'><h2>Definitions</h2>{glossary()}</section>\n"
        f"<div id='definition' popover></div>\n{data}{code}</body></html>\n"
    )
