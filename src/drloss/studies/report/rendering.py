"""HTML pages from the Jinja2 templates beside this file. All text that a user wrote is escaped."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """A whole HTML document, without scripts, which loads nothing from elsewhere.

    Args:
        template: name of a file in the folder ``templates``.
        filters: functions that the template uses as filters.
        values: variables of the template. All text that is not a ``markupsafe.Markup`` is escaped.
    """
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= filters or {}
    return pages.get_template(template).render(**values) + "\n"


def picture(image: Image.Image, *, most: int = 1600) -> str:
    """An image as a data URL of a small WebP file.

    Args:
        image: in any mode that WebP takes.
        most: largest width in pixels; a wider image is reduced to it.
    """
    if image.width > most:
        image = image.resize((most, round(image.height * most / image.width)), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, format="WEBP", quality=84)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
