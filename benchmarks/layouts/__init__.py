"""One set of boxes in every layout that annotation tools export.

    LAYOUTS["voc-beside"].write(Path("new/folder"), pictures())

What a layout writes depends on the pictures alone: the same ones give the same bytes.
"""

from benchmarks.layouts.coco import COCO
from benchmarks.layouts.others import OTHERS
from benchmarks.layouts.pictures import Layout, Picture, Pictures, pictures
from benchmarks.layouts.tables import TABLES
from benchmarks.layouts.voc import VOC
from benchmarks.layouts.yolo import YOLO

__all__ = ["LAYOUTS", "Layout", "Picture", "Pictures", "pictures"]

LAYOUTS: dict[str, Layout] = {**COCO, **VOC, **YOLO, **TABLES, **OTHERS}
"""By short name."""
