"""Every kind of broken input has one verdict, in all formats together."""

import pytest

from data import test_coco, test_voc, test_yolo

TABLES = (
    (test_coco.COCO, test_coco.test_coco_verdict),
    (test_coco.COCO_BYTES, test_coco.test_coco_bytes_verdict),
    (test_voc.VOC, test_voc.test_voc_verdict),
    (test_yolo.YOLO, test_yolo.test_yolo_verdict),
    (test_yolo.YAML, test_yolo.test_yaml_that_is_refused),
)


@pytest.mark.soak
def test_each_of_sixty_kinds_of_broken_input_has_its_verdict(soak, figure, tmp_path, made):
    """All rows once more, so that their number is that of those which hold."""
    rows = sum(len(table) for table, _ in TABLES)
    assert rows >= 60
    for table, check in TABLES if soak else ():
        for number, row in enumerate(table):
            check(row, tmp_path / check.__name__ / str(number), made)
    figure("T19", f"{rows} kinds of broken input, each with its one verdict")
