"""An HTML page around a body: style, definitions and scripts inside, nothing to load."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from orchestrator.analysis.report.html import glossary

# Nothing may be asked of any server, whatever a script in the page should try.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'"
)


def document(
    title: str, main: str, *, header: str = "", footer: str = "", scripts: tuple[str, ...], data: str = ""
) -> str:
    """A page of HTML parts; `scripts` are names of files beside this one, `data` the inert elements they read."""
    assets = files("orchestrator.analysis.report")
    code = "".join(f"<script>{(assets / name).read_text()}</script>\n" for name in scripts)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<link rel='icon' href='data:,'><style>{(assets / 'page.css').read_text()}</style></head>\n<body>{header}\n"
        f"<main>{main}\n<section id='definitions'><h2>Definitions</h2>{glossary()}</section></main>\n"
        f"<footer>{footer}</footer>\n<div id='definition' popover role='dialog' aria-label='Definition' tabindex='-1'>"
        f"</div>\n{data}{code}</body></html>\n"
    )
