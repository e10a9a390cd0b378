"""Pictures of detections, legible on thumbnails and on photographs."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from drloss.data.annotations import Annotations
    from drloss.structures import Detection

# The colours of Okabe and Ito without black, then others that the colour-blind can tell apart.
COLOURS = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
    *("#FFFFFF", "#882255", "#44AA99", "#DDCC77", "#332288", "#AA4499", "#999933", "#88CCEE", "#661100"),
)
"""Colours of the classes; with more classes, the colours repeat."""
SHORT_SIDE = 480
"""Pixels to which smaller images are enlarged."""
DARK = "#111418"

Box = tuple[float, float, float, float]


def draw_detections(
    image: Tensor,
    detection: "Detection",
    class_names: Sequence[str],
    *,
    threshold: float,
    show_scores: bool = True,
    unit: int | None = None,
) -> Image.Image:
    """An image with its detections, those with the best scores on top.

    Args:
        image: uint8 (3, H, W), RGB. An image whose short side is below 480 pixels is enlarged to that.
        detection: boxes in pixels of ``image``, scores and labels.
        class_names: K names; the name of label k is at position k - 1.
        threshold: lowest score that is drawn.
        show_scores: whether labels show the score beside the class.
        unit: short side in pixels for which lines and letters are large enough; by default that of the image. Smaller
            for small objects in a large image.
    """
    height, width = image.shape[1:]
    scale = max(1.0, SHORT_SIDE / min(height, width))
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if scale > 1:
        picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    short = min(*picture.size, unit or max(picture.size))
    line, font = max(3, round(short / 180)), _font(max(14, round(short / 32)))
    best = torch.nonzero(detection["scores"] >= threshold).squeeze(1)
    best = best[detection["scores"][best].argsort(descending=False)]
    entries = [
        (_scaled(detection["boxes"][i], scale), int(detection["labels"][i]), float(detection["scores"][i]))
        for i in best.tolist()
    ]
    for box, label, _ in entries:
        _frame(pen, box, _colour(label), line)
    taken: list[Box] = []
    for box, label, score in reversed(entries):
        text = f"{class_names[label - 1]} {score:.2f}" if show_scores else class_names[label - 1]
        taken.append(_label(pen, box, text, _colour(label), font=font, size=picture.size, taken=taken))
    return picture


def draw_boxes(picture: Image.Image, boxes: Sequence[tuple[Box, str]]) -> Image.Image:
    """A copy of a picture with frames: box in its pixels and colour ``#RRGGBB`` of each, the last on top."""
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    for box, colour in boxes:
        _frame(pen, box, colour, max(2, round(min(picture.size) / 120)))
    return drawn


def mosaic(images: Sequence[Image.Image], columns: int, *, gap: int = 10) -> Image.Image:
    """Images in rows of ``columns``, each centred in a cell of the size of the largest, on a transparent background.

    Raises:
        ValueError: if there is no image or ``columns`` is not positive.
    """
    if not images or columns < 1:
        raise ValueError(f"need images and at least one column, got {len(images)} and {columns}")
    columns = min(columns, len(images))
    width, height = max(i.width for i in images), max(i.height for i in images)
    rows = ceil(len(images) / columns)
    sheet = Image.new("RGBA", (columns * (width + gap) - gap, rows * (height + gap) - gap), (0, 0, 0, 0))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = (width - image.width) // 2, (height - image.height) // 2
        sheet.paste(image, (column * (width + gap) + left, row * (height + gap) + top))
    return sheet


def draw_truth(annotations: "Annotations", index: int, image: Tensor) -> Image.Image:
    """An image with its own boxes; ignored ones get class names of their own.

    Args:
        annotations: the split.
        index: place of the image in it.
        image: uint8 (3, H, W), RGB, as ``annotations.load_image(index)`` gives it.
    """
    names = [*annotations.class_names, *(f"{name}, ignored" for name in annotations.class_names)]
    own = annotations.boxes_of(index)
    boxes: Detection = {
        "boxes": torch.from_numpy(annotations.boxes[own]).float(),
        "scores": torch.ones(own.stop - own.start),
        "labels": torch.from_numpy(annotations.labels[own] + len(annotations.class_names) * annotations.ignore[own]),
    }
    return draw_detections(image, boxes, names, threshold=0.0, show_scores=False)


def _frame(pen: ImageDraw.ImageDraw, box: Box, colour: str, line: int) -> None:
    """A coloured frame between thin dark ones, so that it is visible on any background."""
    left, top, right, bottom = box
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=DARK, width=line + 2)
    pen.rectangle(box, outline=colour, width=line)


def _label(
    pen: ImageDraw.ImageDraw,
    box: Box,
    text: str,
    colour: str,
    *,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: Sequence[Box],
) -> Box:
    """Draw a label at its box, inside the image, where it overlaps the ``taken`` labels least; return its place."""
    pad = max(2, round(font.size / 6))
    width = min(size[0], ceil(pen.textlength(text, font=font)) + 2 * pad)
    height = round(font.size * 1.2) + pad
    x0, y0, x1, y1 = box
    places = [(x0, y0 - height), (x0, y1), (x0, y0), (x1 - width, y0 - height), (x1 - width, y1), (x0, y1 - height)]
    spots = []
    for x, y in places:
        left, top = (min(max(0.0, v), s - e) for v, s, e in zip((x, y), size, (width, height), strict=True))
        spots.append((left, top, left + width, top + height))
    spot = min(spots, key=lambda s: sum(_overlap(s, t) for t in taken))
    pen.rectangle(spot, fill=colour)
    ink = DARK if _luminance(colour) > 0.25 else "#FFFFFF"
    pen.text((spot[0] + pad, (spot[1] + spot[3]) / 2), text, fill=ink, font=font, anchor="lm")
    return spot


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _scaled(box: Tensor, scale: float) -> Box:
    left, top, right, bottom = (float(v) * scale for v in box)
    return left, top, max(left, right), max(top, bottom)


def _colour(label: int) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]


def _luminance(colour: str) -> float:
    """Relative luminance, 0 to 1, of a colour ``#RRGGBB`` (sRGB)."""
    red, green, blue = (float((int(colour[i : i + 2], 16) / 255) ** 2.2) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with Matplotlib and has more scripts than Pillow's own font."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf", size)
