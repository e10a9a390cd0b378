"""How every figure looks, and how it is rendered as SVG and PNG.

A figure has no background of its own, so that it can stand on light and on dark pages. A loss has the same colour in
every figure; a second run of it has a paler one and other dashes or markers.
"""

import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from drloss.io.atomic import write_atomic, write_json, write_text
from drloss.losses import LossSpec

# The colour-blind can tell these apart, and they have about the same contrast on white and on near-black.
PALETTE = {
    **{"dr": "#2B83D6", "dr+": "#7B61D9", "focal": "#D96B00", "ce": "#0E9A74"},
    **{"ohem": "#B25C9E", "qfl": "#708C4D", "ap": "#D90034"},
}
OTHER = "#8A7F78"
# Text and axes. In SVG the colour of the page's text replaces it; in PNG it must be visible on any background.
NEUTRAL = "#7f8081"
WIDTH = 5.2
FONT = 10.5
DASHED = (0, (3, 2))
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D")
"""Markers of the first, second, ... run of a loss."""


def colours(losses: Sequence[str]) -> list[str]:
    """A colour for each run, given the runs' losses: the loss's own, paler for each further run of it.

    Parameters, as in ``dr:neg_lambda=0.05``, make no other loss.
    """
    chosen = []
    for loss, before in zip(losses, variants(losses), strict=True):
        base = PALETTE.get(LossSpec.parse(loss).name, OTHER)
        share = 0.45**before
        ends = zip(_rgb(base), _rgb("#9a9a9a"), strict=True)
        chosen.append("#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in ends))
    return chosen


def variants(losses: Sequence[str]) -> list[int]:
    """For each run, the number of runs before it that have the same loss."""
    names = [LossSpec.parse(loss).name for loss in losses]
    return [names[:index].count(name) for index, name in enumerate(names)]


def looks(losses: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Colour, dashes and marker of each run, given the runs' losses."""
    for colour, before in zip(colours(losses), variants(losses), strict=True):
        yield colour, DASHES[before % len(DASHES)], MARKERS[before % len(MARKERS)]


def shortened(name: str, most: int = 24) -> str:
    """The name, without its middle if it is wider than ``most`` letters. Similar names differ at either end."""
    keep, shown = len(name), name
    while _width(shown) > most:
        keep -= 1
        shown = f"{name[: (keep + 1) // 2]}…{name[len(name) - keep // 2 :]}"
    return shown


def _width(text: str) -> int:
    """Width of a text, counted in narrow letters."""
    return sum(1 + is_wide(letter) for letter in text)


def is_wide(letter: str) -> bool:
    return east_asian_width(letter) in "WF"


@contextmanager
def any_letters() -> Iterator[None]:
    """Silence Matplotlib's warning of letters that its font lacks. In an SVG the reader's fonts draw them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element for an HTML page.

    Args:
        figure: the figure. Its text and axes take the colour of the page's text.
        name: prefix of the ids inside, unique in the page: letters, digits and hyphens.
        description: text for screen readers.
    """
    file = BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "drloss"}), any_letters():
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue().decode()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # A page has several figures, and an id must be unique in it.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(NEUTRAL, "currentColor")
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1).strip()


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file about 1040 pixels wide, with a transparent background."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=200, transparent=True)
    return file.getvalue()


def save_figure(folder: Path, name: str, figure: Figure, data: Any, description: str) -> list[Path]:
    """Write a figure as SVG and PNG, and its data as JSON.

    Args:
        folder: where the files go; it is made if it does not exist.
        name: name of the files, without suffix.
        figure: the figure.
        data: a dataclass of numbers, arrays, lists and such dataclasses.
        description: text for screen readers.
    Returns:
        The files written.
    """
    paths = [folder / f"{name}{suffix}" for suffix in (".svg", ".png", ".json")]
    # A picture of its own may have any background: its text has the colour that is visible on all of them.
    svg = to_svg(figure, name, description).replace("<svg ", f'<svg color="{NEUTRAL}" ', 1)
    write_text(paths[0], svg + "\n")
    write_atomic(paths[1], partial(save_png, figure))
    write_json(paths[2], _plain(asdict(data)))
    return paths


def _plain(value: Any) -> Any:
    """A value in JSON types, with lists for arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def save_png(figure: Figure, path: Path) -> None:
    path.write_bytes(to_png(figure))


def new_figure(panels: int, *, columns: int = 1, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """A figure with empty panels in rows of ``columns``, in the style of all figures."""
    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    shown = [figure.add_subplot(-(-panels // columns), columns, index + 1) for index in range(panels)]
    for axes in shown:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(NEUTRAL)
        axes.tick_params(which="both", colors=NEUTRAL, labelsize=FONT)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=NEUTRAL, fontsize=FONT)
        axes.grid(color=NEUTRAL, alpha=0.18, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, shown


def legend(axes: Axes, *, columns: int = 2, whole: bool = False) -> None:
    """Add a legend above the panel, in fewer columns if the names need the room.

    With ``whole`` it is the legend of all panels, above the first row.
    """
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    names = [textwrap.fill(name, 44, break_on_hyphens=False) for name in names]
    columns = next(
        c for c in range(min(columns, len(names)), 0, -1) if c == 1 or _legend_width(names, c) < WIDTH - 0.6
    )
    rows = max(sum(1 + n.count("\n") for n in column) for column in np.array_split(names, columns))
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.set_figheight(figure.get_figheight() + max(0, rows - 2) * 1.6 * FONT / 72)
    # A dollar sign in the name of a run starts no formula.
    with mpl.rc_context({"text.parse_math": False}):
        (figure if whole else axes).legend(
            handles,
            names,
            **({"loc": "outside upper left"} if whole else {"loc": "lower left", "bbox_to_anchor": (0, 1)}),
            ncols=columns,
            frameon=False,
            fontsize=FONT,
            labelcolor=NEUTRAL,
            handlelength=2,
            columnspacing=1.2,
            borderaxespad=0.2,
        )


def _legend_width(names: Sequence[str], columns: int) -> float:
    """Approximate width of the legend in inches."""
    widest = [
        max(_width(line) for name in column for line in name.split("\n")) for column in np.array_split(names, columns)
    ]
    return sum(0.58 * letters + 3.8 for letters in widest) * FONT / 72


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
