"""``drloss predict``: detect objects in pictures, draw them, and write them as JSON."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import Tensor

from drloss.data.files.paths import IMAGE_SUFFIXES, list_files, why_not_read
from drloss.data.images.decoding import read_image
from drloss.distributed.ranks import Ranks
from drloss.errors import DataError, UserError, first_line, printable
from drloss.evaluation.drawing import draw_detections
from drloss.evaluation.limits import full_images
from drloss.inference.detector import Detector
from drloss.inference.images import prepared
from drloss.io.atomic import json_of, write_atomic, write_json
from drloss.structures import Detection
from drloss.training.messages import warn

PREDICTIONS = "predictions.json"
LONGEST = 180
"""Most bytes of an image's name that the name of its picture repeats. File systems allow 255, and a temporary name is
longer than the final one."""


def predict_images(
    run: Path, images: Path, out: Path, ranks: Ranks, *, threshold: float | None, console: Console
) -> None:
    """Detect objects in an image, or in every image of a folder, and write pictures and ``predictions.json``.

    Args:
        run: run folder, or exported ``.safetensors`` or ``.onnx`` file.
        images: an image file, or a folder, which is searched with its subfolders except ``out``. What it skips there
            (other files, hidden images, linked folders) is counted and printed.
        out: folder for the pictures, which have the names of their images; not the folder of the images.
        ranks: device of the detector.
        threshold: lowest score that is drawn; None for the detector's. The JSON holds everything above its
            ``score_threshold``.
        console: where to print.
    Raises:
        UserError: if there is no image, a file in ``out`` would be overwritten that drloss did not write, or the run
            cannot be loaded; and at the end, if images could not be read or pictures could not be written.
    """
    paths = _find(images, out, console)
    root = images if images.is_dir() else images.parent
    pictures = {path: out / picture_name(path.relative_to(root)) for path in paths}
    _require_place(out, root, pictures.values())
    detector = Detector.load(run, device=str(ranks.device), threshold=threshold)
    threshold = detector.threshold
    description = detector.description
    records: list[dict[str, Any]] = []
    detections: list[Detection] = []
    unreadable: list[str] = []
    unwritten: list[str] = []
    for path in track(paths, "predicting", console=console, disable=len(paths) == 1):
        try:
            image = read_image(path)
        except DataError as error:
            unreadable.append(str(error))
            continue
        pixels, frame = prepared(image, description.detector, detector.fixed_size, path)
        (detection,) = detector.find(pixels.unsqueeze(0), [frame])
        try:
            picture = draw_detections(image, detection, description.class_names, threshold=threshold)
            write_atomic(pictures[path], partial(picture.save, format="PNG"))
        except (UserError, ValueError, MemoryError) as error:
            unwritten.append(f"{printable(str(pictures[path]))}: {first_line(error)}")
        detections.append(detection)
        records.append(_record(str(path.relative_to(root)), image, detection, description.class_names))
    write_json(out / PREDICTIONS, records)
    shown = sum(sum(d["score"] >= threshold for d in r["detections"]) for r in records)
    console.print(f"{len(records)} image(s), {shown} detection(s) of score {threshold:g} or more: {out}")
    if problem := full_images(detections, description.detector.max_detections, threshold):
        warn(console, problem)
    failed = [
        f"{len(found)} of {len(paths)} {what}; the first: {found[0]}"
        for found, what in (
            (unreadable, "images could not be read"),
            (unwritten, f"pictures could not be written (their detections are in {PREDICTIONS})"),
        )
        if found
    ]
    if failed:
        raise UserError("\n".join(failed))


def picture_name(image: Path) -> Path:
    """Path of an image's picture, relative to ``out``: ``a.jpg.png`` for ``a.jpg``. A hash shortens long names.

    The image's own suffix stays, because ``a.jpg`` and ``a.png`` need two pictures.
    """
    name = os.fsencode(image.name)
    if len(name) <= LONGEST:
        return image.with_name(f"{image.name}.png")
    start = name[:LONGEST].decode("utf-8", "ignore")
    return image.with_name(f"{start}-{hashlib.sha256(name).hexdigest()[:16]}.png")


def _find(images: Path, out: Path, console: Console) -> list[Path]:
    if images.is_file():
        return [images]
    drawn = out.resolve()  # it may lie in the folder of images and hold the pictures of an earlier call

    def kept(names: list[str]) -> list[Path]:
        paths = [images / name for name in names]
        return paths if drawn == images.resolve() else [p for p in paths if drawn not in p.resolve().parents]

    listing = list_files(images)
    found = kept(listing.images)
    passed = Counter(why_not_read(path.name) for path in kept(listing.others))
    passed.update({"folder that is a link, not searched": len(listing.links)} if listing.links else {})
    for kind, count in passed.items():
        console.print(f"{images}: {count:,} x {kind}", markup=False, soft_wrap=True)
    if not found:
        what = (
            f"no image in it ({', '.join(sorted(IMAGE_SUFFIXES))})" if images.is_dir() else "no such file or folder"
        )
        raise UserError(f"{images}: {what}")
    return found


def _require_place(out: Path, root: Path, pictures: Iterable[Path]) -> None:
    """Raise UserError if ``out`` is the folder of the images, or a file of other origin would be overwritten."""
    if out.resolve() == root.resolve():
        raise UserError(f"--out {out}: is the folder of the images; name another")
    there = json_of(out / PREDICTIONS)
    keys = {"image", "height", "width", "detections"}
    if isinstance(there, list) and all(isinstance(record, dict) and record.keys() == keys for record in there):
        return
    for path in (out / PREDICTIONS, *pictures):
        if os.path.lexists(path):
            raise UserError(f"--out {out}: {path} is there, not drawn by drloss, and would be overwritten")


def _record(name: str, image: Tensor, detection: Detection, class_names: tuple[str, ...]) -> dict[str, Any]:
    rows = zip(*(detection[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
    return {
        "image": name,
        "height": image.shape[1],
        "width": image.shape[2],
        "detections": [
            {"class": class_names[label - 1], "score": round(score, 5), "box_xyxy": [round(v, 2) for v in box]}
            for box, score, label in rows
        ],
    }
