"""Fingerprint of a split, by which a resumed run recognises its data."""

import hashlib

from drloss.data.annotations import Annotations


def fingerprint(annotations: Annotations) -> str:
    """Hash of all annotations that training and evaluation use, and of the sizes of the image files.

    The pixels are not read, which would take too long: an image replaced by another one with the same name, width,
    height and number of bytes is not noticed.
    """
    digest = hashlib.sha256(repr((annotations.class_names, len(annotations))).encode())
    for array in (
        annotations.category_ids,
        annotations.image_ids,
        annotations.image_names,
        annotations.sizes,
        annotations.first_box,
        annotations.boxes,
        annotations.labels,
        annotations.ignore,
    ):
        digest.update(array.tobytes())
    if (annotations.areas != (annotations.boxes[:, 2:] - annotations.boxes[:, :2]).prod(axis=1)).any():
        digest.update(annotations.areas.tobytes())  # only COCO has areas that do not follow from the boxes
    if annotations.draw is None and annotations.image_root is not None:
        files = (annotations.image_root / annotations.image_name(i) for i in range(len(annotations)))
        digest.update(repr([file.stat().st_size if file.is_file() else -1 for file in files]).encode())
    return digest.hexdigest()
