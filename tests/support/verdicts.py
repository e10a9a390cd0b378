"""Every kind of broken input has one verdict, the same in every release.

A verdict is ``fine``, ``note``, ``clip``, ``box``, ``image`` (with how many, and words of the message) or ``file``:
the whole file is refused, by lenient reading too.
"""

from dataclasses import dataclass
from functools import partial

import pytest

from drloss.data.formats.opening import open_data
from drloss.errors import DataError

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Verdict:
    what: str
    words: str = ""
    boxes: int = 0
    images: int = 0


FINE = Verdict("fine")

note, clip, file = partial(Verdict, "note"), partial(Verdict, "clip"), partial(Verdict, "file")

box = partial(Verdict, "box", boxes=1)


def image(words, boxes=0, images=1):
    return Verdict("image", words, boxes, images)


def assert_verdict(spec, verdict, images=3, boxes=4):
    """Read strictly and leniently."""
    source = open_data(spec)
    root = str(spec if spec.is_dir() else spec.parent)
    if verdict.what == "file":
        for strict in (True, False):
            with pytest.raises(DataError) as caught:
                source.read("train", strict=strict)
            assert verdict.words in str(caught.value)
            assert root in str(caught.value)
        return
    annotations, report = source.read("train", strict=False)
    assert report.boxes_in == report.boxes_kept + report.boxes_left_out
    assert report.images_in == report.images_kept + report.images_left_out
    assert (report.images_kept, report.boxes_kept) == (len(annotations), len(annotations.boxes))
    assert report.boxes_in == boxes
    assert (report.images_left_out, report.boxes_left_out) == (verdict.images, verdict.boxes)
    assert all(p.message.startswith(root) for p in report.problems)
    if verdict.what in ("fine", "note"):
        assert not report.refused
        assert [p.kind for p in report.problems if verdict.words not in p.message] == []
        assert bool(report.problems) == (verdict.what == "note")
        source.read("train")
    else:
        assert verdict.words in report.refused[0].message
        with pytest.raises(DataError) as caught:
            source.read("train")
        text = str(caught.value)
        assert verdict.words in text
        assert len(text.splitlines()) <= 2
        assert root in text
        assert "--skip-bad" in text
