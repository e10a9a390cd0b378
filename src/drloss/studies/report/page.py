"""The bare page of a report: its style and the few elements it is made of. Whatever a user wrote is escaped here."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1c2024; --quiet: #60676f;
  --line: #dfe2e5; --accent: #eef1f4; --shade: #0002; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --card: #1b1f23; --ink: #e6e8ea; --quiet: #9ba3ab;
  --line: #31373d; --accent: #23282d; --shade: #000b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header p.kicker { margin: 0; color: var(--quiet); font-size: .9rem; letter-spacing: .02em; overflow-wrap: anywhere; }
h1 { margin: .4rem 0 1rem; font-size: clamp(1.35rem, 1.05rem + 1.5vw, 2rem); line-height: 1.28; font-weight: 650;
  letter-spacing: -.012em; text-wrap: pretty; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .5rem; font-size: 1.25rem; line-height: 1.3; letter-spacing: -.005em; }
h3 { margin: 1.5rem 0 .3rem; font-size: 1rem; }
p { max-width: 68ch; margin: .5rem 0; overflow-wrap: anywhere; }
p.conclusion { border-left: 3px solid var(--line); padding-left: .9rem; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; line-height: 1.5; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: 1rem;
  margin: 1.5rem 0 0; }
.card { background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--colour);
  border-radius: 8px; padding: .9rem 1.1rem 1rem; }
.card b { display: block; font-size: 1rem; overflow-wrap: anywhere; }
.card .number { font-size: 2.2rem; font-weight: 650; line-height: 1.25; letter-spacing: -.02em; }
.card .number small { font-size: .95rem; font-weight: 500; color: var(--quiet); letter-spacing: 0; }
.scroll { overflow-x: auto; margin: .9rem 0; border: 1px solid var(--line); border-radius: 8px; background:
  linear-gradient(to left, var(--card) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / .9rem 100% no-repeat scroll, var(--card); }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .94rem; }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--quiet); font-weight: 550; background: var(--accent); }
th:first-child, td:first-child { text-align: left; }
thead tr + tr th:first-child { text-align: right; }
thead th[colspan] { text-align: center; border-bottom: 0; padding-bottom: 0; white-space: normal; }
tbody th { font-weight: 550; white-space: normal; }
tbody th, thead tr:first-child th:first-child { position: sticky; left: 0; box-shadow: 1px 0 var(--line); }
tbody th { background: var(--card); }
.name { width: max-content; max-width: 26rem; overflow-wrap: anywhere; }
td.best { font-weight: 720; }
tr.difference > * { color: var(--quiet); }
.start { border-left: 1px solid var(--line); }
table.text { table-layout: fixed; min-width: calc(6.5rem * var(--columns)); }
table.text td, table.text th { text-align: left; white-space: normal; vertical-align: top; overflow-wrap: anywhere; }
table.text th:first-child { width: 24%; }
table.text tbody th { color: var(--quiet); }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em;
  background: var(--colour); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  margin: .9rem 0; align-items: start; }
figure { margin: 0; padding: .8rem .9rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; min-width: 0; }
figure.single { display: grid; grid-template-columns: minmax(0, 36rem) minmax(14rem, 1fr); gap: 1.6rem;
  align-items: center; margin: .9rem 0; }
.grid .scroll { margin: 0; }
figure svg text { font-family: inherit !important; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .6rem; }
.wide { overflow-x: auto; }
.wide > div { min-width: var(--least); }
.columns { display: grid; text-align: center; font-weight: 600; font-size: .92rem; margin-bottom: .5rem; }
@media (max-width: 760px) { figure.single { display: block; } }
@media (max-width: 560px) { table.text th:first-child { width: 31%; }
  main { padding: 1.5rem .8rem 3rem; } h2 { margin-top: 2.3rem; }
  .name { max-width: 9.2rem; } .difference .name { width: auto; }
  th, td { padding: .42rem .38rem; } table { font-size: .82rem; }
  figure { padding: .5rem .45rem .8rem; } figcaption { padding: 0 .3rem; } .columns { font-size: .8rem; } }
@media print { body { background: #fff; } h2 { break-after: avoid; } figure, .scroll { break-inside: avoid; } }
""".strip()


def page(title: str, body: str) -> str:
    """A whole HTML document.

    Args:
        title: as text.
        body: as HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(name: str, heading: str, *parts: str) -> str:
    """A section with the id ``name``; ``heading`` is text, the parts are HTML."""
    return "\n".join([f'<section id="{name}">', f"<h2>{escape(heading)}</h2>", *parts, "</section>"])


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text, of a class of the style if one is named."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def figure(drawing: str, caption: str, *, single: bool = False) -> str:
    """A drawing (HTML) with a caption (text); ``single`` where it stands alone in its row."""
    kind = ' class="single"' if single else ""
    return f"<figure{kind}>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def grid(figures: Sequence[str]) -> str:
    """Figures side by side where the page is wide enough."""
    return '<div class="grid">' + "\n".join(figures) + "</div>"


def dot(colour: str) -> str:
    """The mark of a run."""
    return f'<span class="dot" style="--colour:{colour}"></span>'


def row_name(text: str, colour: str | None = None) -> str:
    """The first cell of a row of numbers: a name, with the mark of a run where that has a colour."""
    return f'<th><div class="name">{dot(colour) if colour else ""}{escape(text)}</div></th>'


def text_table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table of text: the first cell of each row is its name."""
    above = f"<thead><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr></thead>" if head else ""
    lines = [f"<tr><th>{escape(r[0])}</th>{''.join(f'<td>{escape(c)}</td>' for c in r[1:])}</tr>" for r in rows]
    style = f' style="--columns:{max(map(len, rows), default=1)}"'
    return f'<div class="scroll"><table class="text"{style}>{above}<tbody>{"".join(lines)}</tbody></table></div>'


def number_table(head: str, rows: Sequence[str]) -> str:
    """A table of numbers, its rows given as HTML."""
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def picture(image: Image.Image, description: str, *, most: int = 1600) -> str:
    """An image inside the page, as a small WebP file.

    Args:
        image: the image.
        description: for those who cannot see it.
        most: width in pixels to which a wider one is reduced.
    """
    if image.width > most:
        image = image.resize((most, round(image.height * most / image.width)), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, format="WEBP", quality=84)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(description)}">'
