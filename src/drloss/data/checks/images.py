"""Checks of a split's image files: they exist, are whole, decode, and have the listed size.

How a file becomes pixels is stated in :mod:`drloss.data.images.decoding`.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from drloss.data.annotations import Annotations
from drloss.data.checks.problems import IMAGE_LEFT_OUT, NOTE, Problem, Report, report_of, without_images
from drloss.data.files.paths import Inside
from drloss.data.images.decoding import SizeError, check_image, pillow_quieted
from drloss.data.images.endings import may_be_cut_off
from drloss.errors import DataError, reason_of

_Found = tuple[int, Problem]
_THREADS = 8


def require_images(
    annotations: Annotations,
    report: Report | None = None,
    *,
    strict: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Annotations, Report]:
    """Leave out, or refuse, images whose file is missing, empty, cut off or a link out of the image folder.

    This reads the first and last bytes of each file, and decodes only files that do not end as they should, so that
    it is fast enough for the start of every training. Damage inside a file is found when the image is loaded.

    Args:
        annotations: N images.
        report: their report so far.
        strict: raise instead of leaving images out.
        progress: called with the number of images checked so far, and N.

    Raises:
        DataError: if ``strict`` and an image is missing or cut off, or if none is left.
    """
    report = report_of(annotations) if report is None else report
    if annotations.draw is not None or annotations.image_root is None:
        return annotations, report
    check = partial(_missing_or_cut_off, annotations, Inside(annotations.image_root))
    found: list[_Found] = []
    with pillow_quieted(), ThreadPoolExecutor(_THREADS) as pool:  # they wait for a disk or a network
        for i, reason in enumerate(pool.map(check, range(len(annotations)))):
            if reason:
                found.append((i, _problem(annotations, i, reason)))
            if progress is not None:
                progress(i + 1, len(annotations))
    return _result(annotations, report, found, [], strict)


def check_images(
    annotations: Annotations,
    report: Report | None = None,
    *,
    strict: bool = True,
    decode: bool = True,
    progress: Callable[[int, int], object] | None = None,
    workers: int | None = None,
) -> tuple[Annotations, Report]:
    """Read every image as training would, and leave out, or refuse, those that cannot be used.

    Args:
        annotations: N images; generated images need no check.
        report: their report so far.
        strict: check all images, then raise instead of leaving images out.
        decode: read all pixels; otherwise the header only.
        progress: called with the number of images checked so far, and N.
        workers: number of threads; by default one per core, at most 8.

    Raises:
        DataError: if ``strict`` and an image is bad, or if none is left.
    """
    report = report_of(annotations) if report is None else report
    if annotations.draw is not None or annotations.image_root is None:
        return annotations, report
    check = partial(_unusable, annotations, Inside(annotations.image_root), decode)
    found: list[_Found] = []
    unturned: list[int] = []
    threads = workers or min(8, os.cpu_count() or 1)
    with pillow_quieted(), ThreadPoolExecutor(threads) as pool:
        for i, (reason, ignored) in enumerate(pool.map(check, range(len(annotations)))):
            if reason:
                found.append((i, _problem(annotations, i, reason)))
            elif ignored:
                unturned.append(i)
            if progress is not None:
                progress(i + 1, len(annotations))
    notes = []
    if unturned:
        kind = "EXIF orientation not applied, because the listed size is that of the stored pixels"
        note = _problem(annotations, unturned[0], (kind, "", ""))
        notes.append(replace(note, consequence=NOTE, refused=False, count=len(unturned)))
    return _result(annotations, report, found, notes, strict)


def _result(
    annotations: Annotations, report: Report, found: list[_Found], notes: list[Problem], strict: bool
) -> tuple[Annotations, Report]:
    earlier = len(report.problems)
    good, report = without_images(annotations, report, found, notes)
    if strict:
        replace(report, problems=report.problems[earlier:]).refuse()  # the reader has refused the earlier ones
    if not len(good):
        raise DataError(f"{annotations.name}: no usable image of {report.images_in:,}; {found[0][1].message}")
    return good, report


_Reason = tuple[str, str, str]
"""Kind of the problem, the reason in full, and what is allowed."""


def _missing(annotations: Annotations, inside: Inside, index: int) -> _Reason | None:
    assert annotations.image_root is not None
    name = annotations.image_name(index)
    if not inside(name):
        return "image file is a link out of the image folder", "", f"a file within {annotations.image_root}"
    path = annotations.image_root / name
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        return "image file cannot be read", error.strerror or "", "a readable file"
    if size is None:
        return "image file missing", "", "the file that the data set lists"
    return ("image file empty", "0 bytes", "an image") if size == 0 else None


def _missing_or_cut_off(annotations: Annotations, inside: Inside, index: int) -> _Reason | None:
    assert annotations.image_root is not None
    missing = _missing(annotations, inside, index)
    if missing:
        return missing
    try:
        suspect = may_be_cut_off(annotations.image_root / annotations.image_name(index))
    except OSError as error:
        return "image file cannot be read", error.strerror or "", "a readable file"
    return _unusable(annotations, inside, True, index)[0] if suspect else None


def _unusable(annotations: Annotations, inside: Inside, decode: bool, index: int) -> tuple[_Reason | None, bool]:
    """Why an image cannot be used, or None; and whether its EXIF orientation is not applied."""
    missing = _missing(annotations, inside, index)
    if missing:
        return missing, False
    assert annotations.image_root is not None
    path = annotations.image_root / annotations.image_name(index)
    height, width = (int(s) for s in annotations.sizes[index])
    try:
        return None, check_image(path, height, width, pixels=decode)
    except DataError as error:
        reason = reason_of(error, str(path))
        if isinstance(error, SizeError):
            return ("image size differs from the listed one", reason.removeprefix("size, "), ""), False
        return ("image not readable", reason, "an image that decodes"), False


def _problem(annotations: Annotations, index: int, reason: _Reason) -> Problem:
    kind, why, allowed = reason
    return Problem(annotations.image_path(index), "", kind, "", allowed, IMAGE_LEFT_OUT, reason=why)
