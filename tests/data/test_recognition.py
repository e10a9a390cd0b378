"""Folders in which no data set is recognised, or several: what is said of them. And what decides."""

import shutil

import pytest

from drloss.data.checks.images import require_images
from drloss.data.files.paths import following_links
from drloss.data.formats.opening import open_data
from drloss.errors import DataError, UserError


def only_images(folder, made):
    for name in ("a.png", "b.png"):
        made.image(folder / name)


def only_labels(folder, made):
    (folder / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")


def only_xml(folder, made):
    (folder / "a.xml").write_text(made.voc_xml("a", made.boxes["a"]))


def two_formats(folder, made):
    made.coco(folder)
    made.yolo(folder)


def labels_of_others(folder, made):
    only_labels(folder, made)
    made.image(folder / "b.png")


def xml_of_others(folder, made):
    only_xml(folder, made)
    made.image(folder / "b.png")


def an_archive_within(folder, made):
    (folder / "set.zip").write_bytes(b"PK")


def an_archive(folder, made):
    an_archive_within(folder, made)
    return folder / "set.zip"


def an_image(folder, made):
    only_images(folder, made)
    return folder / "a.png"


def one_of_many_files(folder, made):
    only_images(folder, made)
    only_xml(folder, made)
    return folder / "a.xml"


def parquet(folder, made):
    (folder / "train.parquet").write_bytes(b"PAR1")


def other_json(folder, made):
    made.image(folder / "a.png")
    (folder / "a.json").write_text('{"objects": []}')


def other_csv(folder, made):
    made.image(folder / "a.png")
    (folder / "a.csv").write_text("id,price\n1,2\n")


def a_readme(folder, made):
    made.image(folder / "a.png")
    (folder / "readme.txt").write_text("Photographs of the yard.\n")


def a_video(folder, made):
    made.image(folder / "a.png")
    (folder / "annotations.xml").write_text("<annotations><track label='cat'/></annotations>")


def nothing_but_links(folder, made):
    xml_of_others(folder.parent, made)
    (folder / "set").symlink_to(folder.parent)


WRONG = {
    "empty": (lambda folder, made: None, r"found 0 images\. The folder is empty; name the folder with the images"),
    "only images": (only_images, r"found 2 images\. There are images but no annotations: export them"),
    "only labels": (only_labels, r"found 0 images, 1 \.txt\. There are annotations but no images: put the images"),
    "only XML": (only_xml, r"found 0 images, 1 \.xml\. There are annotations but no images"),
    "two formats": (
        two_formats,
        r"like COCO \(annot.*\) and YOLO \(data\.yaml\); choose with a data\.toml in it",
    ),
    "labels of other images": (
        labels_of_others,
        r"1 image, 1 \.txt\. There are label files and images, but none of",
    ),
    "XML of other images": (
        xml_of_others,
        r"1 image, 1 \.xml\. There are XML files and images, but none of one",
    ),
    "an archive in the folder": (an_archive_within, r"found 0 images, 1 \.zip\. Unpack set\.zip first"),
    "an archive": (an_archive, r"set\.zip: an archive; unpack it first; allowed: the folder of a data set"),
    "an image": (an_image, r"a\.png: an image \(drloss predict takes images\); allowed: the folder of a data set"),
    "one XML file of many": (
        one_of_many_files,
        r"a\.xml: not the annotations of a whole data set; allowed: the",
    ),
    "parquet": (parquet, r"\.parquet files hold images and boxes in one, and are not read; export as COCO"),
    "JSON of another kind": (
        other_json,
        r"Nearest: COCO, but a\.json lacks the keys images, annotations and",
    ),
    "CSV of another kind": (other_csv, r"Nearest: CSV, but the first line of a\.csv names no image, class and box"),
    "a text file": (a_readme, r"Nearest: YOLO's label files, but the lines of readme\.txt are not numbers"),
    "an annotated video": (a_video, r"annotations\.xml: a track, of a video; allowed: an export of CVAT for images"),
    "links": (nothing_but_links, r"There is nothing but links, which --follow-links follows"),
}


@pytest.mark.parametrize("row", WRONG)
def test_a_wrong_folder_is_answered_with_what_was_seen_and_what_to_do(row, tmp_path, made):
    make, words = WRONG[row]
    folder = tmp_path / "set"
    folder.mkdir()
    spec = make(folder, made) or folder
    with pytest.raises(UserError, match=words) as caught:
        open_data(spec)
    assert str(folder) in str(caught.value)


def test_a_data_file_without_splits_chooses_the_format(tmp_path, made):
    two_formats(tmp_path, made)
    for kind in ("coco", "yolo"):
        (tmp_path / "data.toml").write_text(f'format = "{kind}"\n')
        source = open_data(tmp_path)
        assert source.format == kind
        assert len(source.read("train")[0].boxes) == 4
    (tmp_path / "data.toml").write_text('format = "cvat"\n')
    with pytest.raises(DataError, match="no cvat data set"):
        open_data(tmp_path)


def test_a_surer_format_is_taken_and_the_other_named(tmp_path, made):
    for stem, boxes in made.boxes.items():
        made.image(tmp_path / f"{stem}.png")
        (tmp_path / f"{stem}.xml").write_text(made.voc_xml(stem, boxes))
    (tmp_path / "labels.csv").write_text(
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,30,20,cat,1,2,9,12\n"
    )
    source = open_data(tmp_path)
    assert source.format == "voc"
    assert "not read: CSV (rows of boxes in labels.csv)" in source.says
    assert len(source.read("all")[0].boxes) == 4


def test_a_folder_in_a_folder_stands_for_it(tmp_path, made):
    made.yolo(tmp_path / "unpacked" / "My Project")
    assert len(open_data(tmp_path).read("train")[0].boxes) == 4


def test_one_annotation_file_may_be_named(tmp_path, made):
    two_formats(tmp_path / "set", made)
    source = open_data(tmp_path / "set/annotations/instances_train.json")
    assert source.format == "coco"
    assert source.splits == ("train",)
    annotations, _ = source.read("train")
    assert len(annotations.boxes) == 4
    annotations.load_image(0)
    made.image(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("image,label,x1,y1,x2,y2\na.png,cat,1,2,9,12\n")
    assert open_data(tmp_path / "boxes.csv").read("all")[1].boxes_kept == 1


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_links_out_of_a_data_set_are_followed_where_that_is_asked_for(kind, tmp_path, made):
    getattr(made, kind)(tmp_path / "set")
    inner = {"coco": "train", "voc": "JPEGImages", "yolo": "images/train"}[kind]
    shutil.move(tmp_path / "set" / inner, tmp_path / "elsewhere")
    (tmp_path / "set" / inner).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"link out of|--follow-links"):
        open_data(tmp_path / "set").read("train")
    with following_links(True):
        annotations, report = require_images(*open_data(tmp_path / "set").read("train"))
    assert report.boxes_kept == 4
    annotations.load_image(0)


def test_links_that_lead_in_circles_are_followed_once(tmp_path, made):
    for stem, boxes in made.boxes.items():
        made.image(tmp_path / "set" / f"{stem}.png")
        (tmp_path / "set" / f"{stem}.xml").write_text(made.voc_xml(stem, boxes))
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    made.image(tmp_path / "elsewhere" / "d.png")
    (tmp_path / "elsewhere" / "d.xml").write_text(made.voc_xml("d", made.boxes["b"]))
    for name in ("one", "other"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere")
    with following_links(True):
        report = open_data(tmp_path / "set").read("all")[1]
    assert report.images_kept == report.images_in == 4
