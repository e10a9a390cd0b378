"""Small made-up data sets in the three formats, for the tests of the readers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

WIDTH, HEIGHT = 30, 20
CLASSES = ("cat", "dog")
NAMES = ("a.png", "b.png", "c.png")
# Image a has three boxes, b one, c none.
BOXES = {
    "a": [("cat", 1, 2, 9, 12), ("dog", 10, 5, 30, 20), ("cat", 0, 0, 4, 4)],
    "b": [("dog", 3, 3, 13, 18)],
    "c": [],
}


def make_image(path, size=(WIDTH, HEIGHT), colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 10, 200)).save(path)


def coco_content():
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}
    for k, name in enumerate(NAMES):
        content["images"].append({"id": k + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for kind, x1, y1, x2, y2 in BOXES[name[0]]:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": k + 1,
                    "category_id": 3 if kind == "cat" else 7,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return content


def make_coco(folder: Path, content=None, split="train") -> Path:
    """A folder with ``annotations/instances_{split}.json``; returns that file."""
    for k, name in enumerate(NAMES):
        make_image(folder / split / name, colour=k)
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = coco_content() if content is None else content
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def voc_xml(stem, boxes, extra="", size=f"<width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth>"):
    objects = "".join(
        f"<object><name>{n}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for n, x1, y1, x2, y2 in boxes
    )
    return f"<annotation><filename>{stem}.png</filename><size>{size}</size>{objects}{extra}</annotation>"


def make_voc(tree: Path, boxes=BOXES, split="train") -> Path:
    """A VOC tree; returns its folder."""
    (tree / "Annotations").mkdir(parents=True)
    (tree / "ImageSets" / "Main").mkdir(parents=True)
    for k, (stem, own) in enumerate(boxes.items()):
        make_image(tree / "JPEGImages" / f"{stem}.png", colour=k)
        (tree / "Annotations" / f"{stem}.xml").write_text(voc_xml(stem, own))
    (tree / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{s}\n" for s in boxes))
    return tree


def yolo_line(kind, x1, y1, x2, y2):
    shares = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
    return " ".join([str(CLASSES.index(kind)), *(f"{v:.17g}" for v in shares)])


def make_yolo(folder: Path, split="train") -> Path:
    """A YOLO data set; returns its ``data.yaml``."""
    for k, name in enumerate(NAMES):
        make_image(folder / "images" / split / name, colour=k)
        label = folder / "labels" / split / f"{name[0]}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(yolo_line(*box) + "\n" for box in BOXES[name[0]]))
    path = folder / "data.yaml"
    path.write_text(f"path: .\n{split}: images/{split}\nnames: [cat, dog]\nnc: 2\n")
    return path


@pytest.fixture(scope="session")
def made():
    """The functions of this file."""
    return SimpleNamespace(
        image=make_image,
        coco_content=coco_content,
        coco=make_coco,
        voc=make_voc,
        voc_xml=voc_xml,
        yolo=make_yolo,
        yolo_line=yolo_line,
        names=NAMES,
        boxes=BOXES,
    )
