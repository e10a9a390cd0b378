"""COCO's JSON as tools lay it out."""

from pathlib import Path
from typing import Any

from benchmarks.layouts.pictures import (
    Layout,
    Picture,
    Pictures,
    WriteSplit,
    in_one,
    in_splits,
    put_json,
    renamed,
    save_images,
)

SCRIPTS = {"blue": "красный мяч", "green": "قطة", "red": "猫 🐈"}
"""What the classes are called in several scripts; the alphabetical order stays the same."""
_FILE_NAMES = ("снимок {}.jpg", "صورة {}.jpg", "写真 {}.jpg", "🐈 at home {}.jpg")


def in_scripts(pictures: Pictures) -> Pictures:
    """The pictures with classes and files named in Cyrillic, Arabic, Japanese and emoji, with spaces."""
    return renamed(pictures, name=lambda i, p: _FILE_NAMES[i % len(_FILE_NAMES)].format(p.stem), classes=SCRIPTS)


def coco(
    pictures: list[Picture], classes: list[str], file_name: str = "{}", first_id: int = 1, parent: str = ""
) -> dict[str, Any]:
    """The content of the JSON.

    Args:
        file_name: pattern of the image's ``file_name``.
        first_id: where all ids start.
        parent: name of a category before the others, to which no box belongs.
    """
    categories = [{"id": first_id, "name": parent, "supercategory": "none"}] if parent else []
    ids = {name: first_id + len(categories) + k for k, name in enumerate(classes)}
    categories += [{"id": i, "name": name, "supercategory": parent} for name, i in ids.items()]
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, first_id):
        size = {"width": picture.width, "height": picture.height}
        images.append({"id": image_id, **size, "file_name": file_name.format(picture.name)})
        for name, x1, y1, x2, y2 in picture.boxes:
            box = {"id": first_id + len(boxes), "image_id": image_id, "category_id": ids[name]}
            shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "segmentation": []}
            boxes.append({**box, **shape, "iscrowd": 0})
    return {"info": {}, "licenses": [], "categories": categories, "images": images, "annotations": boxes}


def _files(json: str, images: str, **how: Any) -> WriteSplit:
    """Writes the JSON and the folder of images of these names, in which ``{}`` is the split."""

    def write(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
        save_images(folder / images.format(split), pictures)
        put_json(folder / json.format(split), coco(pictures, classes, **how))

    return write


_COCO2017 = _files("annotations/instances_{}2017.json", "{}2017")
_ROBOFLOW = _files("{}/_annotations.coco.json", "{}", first_id=0, parent="shapes")

COCO: dict[str, Layout] = {
    "coco-2017": in_splits(_COCO2017, "annotations/instances_train2017.json, train2017/ (COCO)"),
    "coco-cvat": in_splits(
        _files("annotations/instances_{}.json", "images/{}"),
        "annotations/instances_Train.json, images/Train/ (CVAT, COCO 1.0)",
        train="Train",
        val="Validation",
    ),
    "coco-roboflow": in_splits(
        _ROBOFLOW, "train/_annotations.coco.json beside the images, category 0 without boxes (Roboflow)", val="valid"
    ),
    "coco-label-studio": in_one(
        _files("result.json", "images", file_name="images\\{}", first_id=0),
        "result.json, images/, file names with a backslash, ids from 0 (Label Studio on Windows)",
    ),
    "coco-fiftyone": in_one(_files("labels.json", "data"), "labels.json, data/ (FiftyOne)"),
    "coco-beside": in_one(_files("annotations.json", "."), "annotations.json beside the images"),
    "coco-inside": in_splits(_files("{}/annotations.json", "{}/images"), "train/annotations.json, train/images/"),
    "coco-flat": in_splits(_files("{}.json", "images"), "train.json, val.json, images/ with all images"),
    "coco-folders": in_splits(_files("annotations/{}.json", "{}"), "annotations/train.json, train/"),
    "coco-scripts": in_splits(
        _COCO2017, "as coco-2017, with names in several scripts and with spaces", as_written=in_scripts
    ),
}
