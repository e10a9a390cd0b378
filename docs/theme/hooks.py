"""What mkdocs does not do by itself: formulas of docstrings as MathML, and the roles of Sphinx in them as code.

mkdocs calls the functions ``on_...``; see https://www.mkdocs.org/dev-guide/plugins/#events.
"""

import re
from html import escape, unescape

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
"""As pymdownx.arithmatex leaves it."""
ROLE = re.compile(r":(?:class|func|meth|data|mod|attr|exc):<code>(?P<short>~?)(?P<name>[\w.]+)</code>")
"""A cross-reference in the notation of Sphinx, in a page that Markdown has rendered."""


def on_page_content(html: str, **event: object) -> str:
    """The HTML of a page, with its formulas and roles rendered."""
    return ROLE.sub(_code, FORMULA.sub(_formula, html))


def _formula(match: re.Match[str]) -> str:
    display = "block" if match["open"] == "[" else "inline"
    return convert(unescape(match["latex"]), display=display)


def _code(match: re.Match[str]) -> str:
    name = match["name"].lstrip(".")
    shown = name.rsplit(".", 1)[-1] if match["short"] else name
    return f"<code>{escape(shown)}</code>"
