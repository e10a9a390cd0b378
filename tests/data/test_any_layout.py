"""Every layout that annotation tools export is read from its bare folder, with the same boxes."""

import numpy as np
import pytest

from benchmarks.layouts import LAYOUTS, pictures
from drloss.data.formats.opening import open_data
from drloss.data.formats.toml_writing import write_data_toml

PICTURES = pictures(6, 3)


def content(annotations):
    """File name to the image's size and its boxes in whole pixels, each with its class."""
    assert len({annotations.image_name(i).rpartition("/")[2] for i in range(len(annotations))}) == len(annotations)
    found = {}
    for i in range(len(annotations)):
        own = annotations.boxes_of(i)
        names = [annotations.class_names[label - 1] for label in annotations.labels[own].tolist()]
        np.testing.assert_allclose(annotations.boxes[own], annotations.boxes[own].round(), atol=2e-3)
        boxes = [tuple(box) for box in annotations.boxes[own].round().astype(int).tolist()]
        size = tuple(annotations.sizes[i].tolist())
        found[annotations.image_name(i).rpartition("/")[2]] = size, sorted(zip(names, boxes, strict=True))
    return found


def written(layout, own):
    kept = [p for p in own if p.boxes or layout.keeps_empty]
    return {p.name: ((p.height, p.width), sorted((n, (*box,)) for n, *box in p.boxes)) for p in kept}


def splits_of(layout, source):
    """Split to the pictures that it should have."""
    made = layout.as_written(PICTURES)
    if layout.splits == "both":
        return {"train": made["train"], "val": made["val"]}
    (whole,) = source.splits
    return {whole: [*made["train"], *made["val"]]}


@pytest.mark.parametrize("key", LAYOUTS)
def test_a_bare_folder_gives_the_boxes_that_were_written(key, tmp_path):
    layout = LAYOUTS[key]
    source = open_data(layout.write(tmp_path / "set", PICTURES))
    assert source.says
    classes = set()
    for split, own in splits_of(layout, source).items():
        annotations, report = source.read(split)
        assert content(annotations) == written(layout, own)
        assert report.boxes_in == report.boxes_kept == len(annotations.boxes)
        assert report.images_in == len(annotations)
        classes.add(annotations.class_names)
        for i in range(len(annotations)):
            annotations.load_image(i)
    assert len(classes) == 1


@pytest.mark.parametrize("key", LAYOUTS)
def test_the_data_file_that_is_written_of_a_folder_gives_the_same(key, tmp_path):
    layout = LAYOUTS[key]
    source = open_data(layout.write(tmp_path / "set", PICTURES))
    path = tmp_path / "set" / "own.toml"
    write_data_toml(path, source)
    again = open_data(path)
    there = splits_of(layout, source)
    assert set(there) <= set(again.splits) <= set(source.splits)
    for split in there:
        one, other = source.read(split)[0], again.read(split)[0]
        assert content(one) == content(other)
        assert one.class_names == other.class_names
