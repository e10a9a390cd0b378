import numpy as np
import pytest
from PIL import Image

from benchmarks.layouts import LAYOUTS, pictures
from benchmarks.layouts.pictures import class_names

PICTURES = pictures(3, 2)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def every(made):
    return [picture for own in made.values() for picture in own]


def test_the_pictures_are_the_same_in_every_call():
    for one, other in zip(every(pictures()), every(pictures()), strict=True):
        assert (one.name, one.boxes) == (other.name, other.boxes)
        assert np.array_equal(one.pixels, other.pixels)


def test_the_pictures_have_what_they_promise():
    made = pictures()
    assert {split: len(own) for split, own in made.items()} == {"train": 12, "val": 6}
    assert len({p.name for p in every(made)}) == 18
    assert len({p.pixels.shape for p in every(made)}) == 3
    for own in made.values():
        assert class_names({"": own}) == ["blue", "green", "red"]
        assert [p.boxes for p in own].count([]) == 1
    for p in every(made):
        for _, x1, y1, x2, y2 in p.boxes:
            assert 1 <= x1 <= x2 - 4
            assert 1 <= y1 <= y2 - 4
            assert x2 < p.width
            assert y2 < p.height


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_writes_the_images_and_the_same_bytes_twice(tmp_path, name):
    layout = LAYOUTS[name]
    once, again = tmp_path / "once" / "set", tmp_path / "again" / "set"
    assert layout.write(once, PICTURES) == once
    layout.write(again, PICTURES)
    written = files(once)
    assert written == files(again)
    images = [path for path in once.rglob("*") if path.suffix.lower() == ".jpg"]
    assert len(written) > len(images)
    wanted = [p for p in every(layout.as_written(PICTURES)) if p.boxes or layout.keeps_empty]
    assert sorted(path.name for path in images) == sorted(p.name for p in wanted)
    sizes = {p.name: (p.width, p.height) for p in wanted}
    for path in images:
        with Image.open(path) as image:
            assert image.size == sizes[path.name]
