"""Public data sets, where ``DRLOSS_TEST_DATA`` names a folder that has them."""

import numpy as np
import pytest

from drloss.data.formats.opening import open_data
from drloss.data.inspection import check_data

FIELDS = ("category_ids", "image_ids", "sizes", "first_box", "boxes", "labels", "ignore", "areas")


@pytest.fixture
def folder(real_data):
    def find(name):
        if not (real_data / name).is_dir():
            pytest.skip(f"no folder {name} in DRLOSS_TEST_DATA")
        return real_data / name

    return find


@pytest.mark.parametrize(("split", "images"), [("train", 205), ("val", 87), ("test", 72)])
def test_blood_cells_are_the_same_in_voc_and_coco(folder, split, images):
    coco, _ = open_data(folder("bccd")).read(split)
    voc, _ = open_data(folder("bccd") / "BCCD").read(split, strict=False)
    assert len(coco) == images
    assert coco.class_names == voc.class_names == ("Platelets", "RBC", "WBC")
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(coco, field), getattr(voc, field), err_msg=field)


def test_blood_cells_have_two_degenerate_boxes_in_xml(folder):
    result = check_data(folder("bccd") / "BCCD", ["train", "val", "test"])
    assert [p.kind for p in result.problems] == ["box without width or height"] * 2
    assert sum(r.boxes_in for r in result.reports.values()) == 4888
    assert sum(r.boxes_kept for r in result.reports.values()) == 4886


@pytest.mark.parametrize(
    ("name", "images", "boxes"),
    [("bccd", 364, 4886), ("microcontroller_400", 149, 177), ("fod_a_s10", 3358, 3422)],
)
def test_coco_sets_read_clean(folder, name, images, boxes):
    result = check_data(folder(name), decode=name != "fod_a_s10")
    assert result.ok
    assert result.problems == ()
    assert sum(r.images_kept for r in result.reports.values()) == images
    assert sum(r.boxes_kept for r in result.reports.values()) == boxes
