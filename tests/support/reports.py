"""Reading a split for its report."""

from drloss.data.formats.opening import open_data


def read(folder, split="train"):
    """Leniently; the report balances."""
    annotations, report = open_data(folder).read(split, strict=False)
    assert report.boxes_in == report.boxes_kept + report.boxes_left_out
    assert report.images_in == report.images_kept + report.images_left_out
    assert (report.images_kept, report.boxes_kept) == (len(annotations), len(annotations.boxes))
    return annotations, report


def names_of(annotations):
    return [annotations.image_name(i) for i in range(len(annotations))]


def kinds(report):
    return {p.kind: p.count for p in report.problems}
