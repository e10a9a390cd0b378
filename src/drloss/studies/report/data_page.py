"""The page of a data set: what ``drloss data`` says of it, and pictures of its images with their boxes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from drloss.data.annotations import Annotations
from drloss.data.inspection import BOX_SIDES, CheckResult
from drloss.errors import UserError
from drloss.evaluation.coco import percent
from drloss.io.atomic import write_text
from drloss.studies.report.gallery import truth
from drloss.studies.report.rendering import picture, render

SHOWN = 12
"""Number of images of each split."""
COLUMNS = 3


def write_data_page(path: Path, result: CheckResult, splits: Mapping[str, Annotations]) -> None:
    """Write the page, atomically.

    Args:
        path: the file.
        result: what was found.
        splits: split to its annotations; images spread over the split are shown, those with boxes first.

    Raises:
        UserError: if ``path`` is a folder.
        DataError: if an image cannot be read.
    """
    if path.is_dir():
        raise UserError(f"--page {path}: is a folder; name a file")
    pictures = [
        (split, len(own), picture(truth(own, _some(own), COLUMNS))) for split, own in splits.items() if len(own)
    ]
    page = render(
        "data.html",
        {"percent": percent},
        title=f"{result.name}: {result.format}",
        says=result.says,
        tables=[(result.split_rows(), BOX_SIDES), (result.class_rows(), "boxes of each class")],
        findings="\n".join(result.findings()).strip(),
        pictures=pictures,
    )
    write_text(path, page)


def _some(annotations: Annotations) -> list[int]:
    counts = np.diff(annotations.first_box)
    chosen = np.flatnonzero(counts > 0) if (counts > 0).sum() >= SHOWN else np.arange(len(annotations))
    spread = np.linspace(0, len(chosen) - 1, min(SHOWN, len(chosen))).round().astype(np.int64)
    return [int(i) for i in chosen[np.unique(spread)]]
