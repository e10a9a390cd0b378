"""LabelMe, CreateML, CVAT and Hugging Face's image folders."""

import base64
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from benchmarks.layouts.pictures import (
    Layout,
    Picture,
    Pictures,
    WriteSplit,
    class_names,
    in_one,
    in_splits,
    put,
    put_json,
    put_lines,
    save_images,
)


def labelme(picture: Picture, polygons: bool, has_data: bool) -> dict[str, Any]:
    """The JSON of one picture.

    Args:
        polygons: a box is four corners; else two opposite ones, of which every second box has the lower one first.
        has_data: the image file is in the JSON.
    """
    shapes: list[dict[str, Any]] = []
    for j, (name, x1, y1, x2, y2) in enumerate(picture.boxes):
        if polygons:
            points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
        else:
            points = [[x2, y2], [x1, y1]] if j % 2 else [[x1, y1], [x2, y2]]
        kind = "polygon" if polygons else "rectangle"
        shapes.append({"label": name, "points": points, "group_id": None, "shape_type": kind, "flags": {}})
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": picture.name,
        "imageData": _base64(picture) if has_data else None,
        "imageHeight": picture.height,
        "imageWidth": picture.width,
    }


def _base64(picture: Picture) -> str:
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, format="JPEG", quality=95)
    return base64.b64encode(file.getvalue()).decode()


def _labelme(inner: str, polygons: bool, has_data: bool) -> WriteSplit:
    def write(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
        save_images(folder / inner.format(split), pictures)
        for picture in pictures:
            path = folder / inner.format(split) / f"{picture.stem}.json"
            put_json(path, labelme(picture, polygons, has_data))

    return write


def createml(picture: Picture) -> dict[str, Any]:
    """The entry of one picture; x and y are the centre of a box."""
    boxes = []
    for name, x1, y1, x2, y2 in picture.boxes:
        place = {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}
        boxes.append({"label": name, "coordinates": place})
    return {"image": picture.name, "annotations": boxes}


def _createml(path: str) -> WriteSplit:
    def write(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
        file = folder / path.format(split)
        save_images(file.parent, pictures)
        put_json(file, [createml(picture) for picture in pictures])

    return write


def cvat(pictures: Pictures, has_subsets: bool) -> str:
    """The XML of all pictures, of a project with subsets or of a task."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    meta = ElementTree.SubElement(root, "meta")
    labels = ElementTree.SubElement(ElementTree.SubElement(meta, "project" if has_subsets else "task"), "labels")
    for name in class_names(pictures):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "type").text = "rectangle"
    every = [(split, picture) for split, own in pictures.items() for picture in own]
    for i, (split, picture) in enumerate(every):
        subset = {"subset": split} if has_subsets else {}
        size = {"width": str(picture.width), "height": str(picture.height)}
        image = ElementTree.SubElement(root, "image", {"id": str(i), "name": picture.name, **subset, **size})
        for name, *box in picture.boxes:
            sides = {side: f"{value:.2f}" for side, value in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)}
            how = {"label": name, "source": "manual", "occluded": "0"}
            ElementTree.SubElement(image, "box", {**how, **sides, "z_order": "0"})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _cvat_task(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
    save_images(folder / "images", pictures)
    put(folder / "annotations.xml", cvat({split: pictures}, has_subsets=False))


def _cvat_project(folder: Path, pictures: Pictures) -> Path:
    for split, own in pictures.items():
        save_images(folder / "images" / split, own)
    put(folder / "annotations.xml", cvat(pictures, has_subsets=True))
    return folder


def _hugging_face(inner: str, key: str) -> WriteSplit:
    def write(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
        place = folder / inner.format(split)
        save_images(place, pictures)
        lines = []
        for picture in pictures:
            boxes = [[x1, y1, x2 - x1, y2 - y1] for _, x1, y1, x2, y2 in picture.boxes]
            objects = {"bbox": boxes, key: [name for name, *_ in picture.boxes]}
            lines.append(json.dumps({"file_name": picture.name, "objects": objects}, ensure_ascii=False))
        put_lines(place / "metadata.jsonl", lines)

    return write


OTHERS: dict[str, Layout] = {
    "labelme": in_one(_labelme(".", False, True), "a JSON file with the image in it beside each image (LabelMe)"),
    "labelme-polygons": in_splits(
        _labelme("{}", True, False),
        "train/, val/, as labelme, with polygons of four corners and no image in the JSON",
    ),
    "createml-roboflow": in_splits(
        _createml("{}/_annotations.createml.json"),
        "train/_annotations.createml.json beside the images (Roboflow)",
        val="valid",
    ),
    "createml": in_one(_createml("annotations.json"), "annotations.json, a list, beside the images (CreateML)"),
    "cvat-task": in_one(_cvat_task, "annotations.xml, images/ (CVAT for images 1.1, a task)"),
    "cvat-project": Layout(
        _cvat_project,
        "both",
        True,
        'annotations.xml with subset="train", images/train/ (CVAT for images 1.1, a project)',
    ),
    "hugging-face": in_splits(
        _hugging_face("{}", "categories"),
        "train/metadata.jsonl beside the images (imagefolder of Hugging Face)",
        val="validation",
    ),
    "hugging-face-flat": in_one(
        _hugging_face(".", "category"), "metadata.jsonl beside the images, key category (imagefolder of Hugging Face)"
    ),
}
