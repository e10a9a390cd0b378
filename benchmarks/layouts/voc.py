"""VOC's XML as tools lay it out. Coordinates are counted from 0, as these tools do."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.layouts.pictures import (
    Layout,
    Picture,
    Pictures,
    WriteSplit,
    in_one,
    in_splits,
    put,
    put_lines,
    renamed,
    save_images,
)


def voc(picture: Picture, filename: str = "", has_size: bool = True, namespace: str = "") -> str:
    """The XML of one picture.

    Args:
        filename: what it says that the image is called; its name by default.
        has_size: its size is the image's, not 0 x 0.
        namespace: its default namespace.
    """
    root = ElementTree.Element("annotation", {"xmlns": namespace} if namespace else {})
    _add(root, folder="images", filename=filename or picture.name)
    _add(ElementTree.SubElement(root, "source"), database="Unknown")
    width, height = (picture.width, picture.height) if has_size else (0, 0)
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3 if has_size else 0)
    _add(root, segmented=0)
    for name, x1, y1, x2, y2 in picture.boxes:
        item = ElementTree.SubElement(root, "object")
        _add(item, name=name, pose="Unspecified", truncated=0, difficult=0)
        _add(ElementTree.SubElement(item, "bndbox"), xmin=x1, ymin=y1, xmax=x2, ymax=y2)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, **values: str | int) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _files(xml: str, images: str, listing: str = "", suffix: str = ".xml", **how: Any) -> WriteSplit:
    """Writes the folders of XML files and of images, and the list; ``{}`` in their names is the split."""

    def write(folder: Path, split: str, pictures: list[Picture], classes: list[str]) -> None:
        save_images(folder / images.format(split), pictures)
        for picture in pictures:
            put(folder / xml.format(split) / f"{picture.stem}{suffix}", voc(picture, **how))
        if listing:
            put_lines(folder / listing.format(split), [picture.stem for picture in pictures])

    return write


def _in_capitals(pictures: Pictures) -> Pictures:
    return renamed(pictures, name=lambda _, p: f"{p.stem}.JPG")


_BESIDE = _files("{}", "{}")
_APART = ("annotations", "images")

VOC: dict[str, Layout] = {
    "voc-tree": in_splits(
        _files("Annotations", "JPEGImages", "ImageSets/Main/{}.txt"),
        "Annotations/, JPEGImages/, ImageSets/Main/ (VOC)",
    ),
    "voc-tree-no-lists": in_one(_files("Annotations", "JPEGImages"), "Annotations/, JPEGImages/ without ImageSets"),
    "voc-beside": in_one(_files(".", "."), "XML files beside the images (labelImg)"),
    "voc-apart": in_one(_files(*_APART), "images/, annotations/"),
    "voc-apart-splits": in_splits(_files("annotations/{}", "images/{}"), "images/train, annotations/train"),
    "voc-folders": in_splits(_BESIDE, "train/, val/ with XML files beside the images (TensorFlow's tutorial)"),
    "voc-inside": in_splits(_files("{}/annotations", "{}/images"), "train/images, train/annotations"),
    "voc-roboflow": in_splits(_BESIDE, "train/, valid/ with XML files beside the images (Roboflow)", val="valid"),
    "voc-no-size": in_one(_files(*_APART, has_size=False), "as voc-apart, with sizes of 0 x 0"),
    "voc-wrong-filename": in_one(
        _files(*_APART, filename="IMG_0001.jpg"), "as voc-apart, every <filename> names an image that is not there"
    ),
    "voc-capitals": in_one(
        _files(".", ".", suffix=".XML"), "as voc-beside, with .XML and .JPG", as_written=_in_capitals
    ),
    "voc-namespace": in_one(
        _files(*_APART, namespace="http://example.com/voc"), "as voc-apart, the XML with a default namespace"
    ),
}
