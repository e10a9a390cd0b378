"""Nothing goes missing without a word: what a data set's folders hold is read, left out and counted, or noted."""

from pathlib import Path

import pytest
from PIL import Image

from drloss.data.checks.images import check_images
from drloss.data.checks.problems import BOX_LEFT_OUT, NOTE
from drloss.data.files.paths import IMAGE_SUFFIXES, list_files
from drloss.data.formats.opening import open_data
from drloss.data.images.decoding import FORMATS
from drloss.data.inspection import check_data
from drloss.errors import AbsentError, DataError
from support.reports import kinds, names_of, read

# ---------------------------------------------------------------------- suffixes of images


def test_every_suffix_of_a_format_that_is_read_counts_as_an_image():
    Image.init()
    known = {
        suffix for suffix, format_ in Image.registered_extensions().items() if format_ in (*FORMATS, "MPO", "DIB")
    }
    # MPO and DIB are a JPEG and a BMP in the file; PFM holds floats, which have no range that maps to 0..255.
    assert known - {".pfm"} <= IMAGE_SUFFIXES
    assert IMAGE_SUFFIXES - known == set()


def test_images_by_any_suffix_that_decodes_are_read_and_other_files_noted(tmp_path, made):
    made.yolo(tmp_path)
    images = tmp_path / "images/train"
    for name, format_ in (("d.jfif", "JPEG"), ("e.MPO", "JPEG"), ("f.jpe", "JPEG"), ("g.pbm", "PPM")):
        Image.new("RGB", (30, 20)).save(images / name, format=format_)
        (tmp_path / "labels/train" / name).with_suffix(".txt").write_text(made.yolo_line("cat", 1, 2, 9, 12))
    for name in ("h.heic", "i.HEIC", "j", ".k.png", "notes.json"):
        (images / name).write_bytes(b"x")
    annotations, report = read(tmp_path)
    assert [Path(n).name for n in names_of(annotations)] == [*made.names, "d.jfif", "e.MPO", "f.jpe", "g.pbm"]
    assert report.boxes_kept == 8
    assert kinds(check_images(annotations, report)[1]) == {
        "file with suffix .heic, not taken for an image": 2,
        "file without a suffix, not taken for an image": 1,
        "file with suffix .json, not taken for an image": 1,
        "hidden image file, not read": 1,
    }
    assert open_data(tmp_path).read("train")[1] == report


def test_a_folder_that_is_a_link_is_noted(tmp_path, made):
    made.yolo(tmp_path)
    made.image(tmp_path / "more/x.png")
    (tmp_path / "images/train/more").symlink_to(tmp_path / "more")
    assert kinds(read(tmp_path)[1]) == {"folder that is a link, not searched": 1}
    tree = made.voc(tmp_path / "tree")
    (tree / "JPEGImages/more").symlink_to(tmp_path / "more")
    assert kinds(read(tree)[1]) == {"folder that is a link, not searched": 1}


def test_odd_names_are_shown_escaped(tmp_path, made):
    made.yolo(tmp_path)
    (tmp_path / "images/train/x.\x1b[2J").touch()
    report = read(tmp_path)[1]
    assert len(report.problems) == 1
    assert report.text().replace("\n", "").isprintable()


def test_a_listing_of_no_folder_is_empty(tmp_path):
    assert list_files(tmp_path / "no").images == []


# ---------------------------------------------------------------------- label files without an image


def test_a_label_file_without_an_image_is_left_out_with_its_boxes(tmp_path, made):
    made.yolo(tmp_path)
    (tmp_path / "images/train/a.png").unlink()
    _, report = read(tmp_path)
    assert (report.boxes_in, report.boxes_left_out) == (4, 3)
    (problem,) = report.problems
    assert (problem.consequence, problem.refused, problem.boxes) == (BOX_LEFT_OUT, True, 3)
    path = tmp_path / "labels/train/a.txt"
    assert problem.message.startswith(f"{path}: label file that no image takes, got '3 lines'; allowed: an image of")
    with pytest.raises(DataError, match="label file that no image takes"):
        open_data(tmp_path).read("train")


def test_label_files_without_an_image_are_found_in_subfolders_and_beside_the_images(tmp_path, made):
    made.yolo(tmp_path)
    line = made.yolo_line("cat", 1, 2, 9, 12) + "\n"
    for place in ("labels/train/sub/x.txt", "images/train/y.txt", "images/train/a.txt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(line * 2)
    _, report = read(tmp_path)
    assert (report.boxes_in, report.boxes_left_out) == (10, 6)
    found = {str(Path(p.file).relative_to(tmp_path)): p.boxes for p in report.problems}
    assert found == {"labels/train/sub/x.txt": 2, "images/train/y.txt": 2, "images/train/a.txt": 2}


def test_texts_that_are_no_labels_are_passed_over_and_empty_labels_noted(tmp_path, made):
    made.yolo(tmp_path)
    (tmp_path / "labels/train/classes.txt").write_text("cat\ndog\n")
    (tmp_path / "images/train/README.txt").write_text("five words on this line 1\n")
    (tmp_path / "labels/train/x.txt").write_text("\n")
    (tmp_path / "labels/train/y.txt").write_bytes(b"\xff\xfe\xff")
    _, report = read(tmp_path)
    assert {p.kind: p.consequence for p in report.problems} == {
        "label file without a line that no image takes": NOTE,
        "label file that no image takes, not readable": NOTE,
    }


def test_labels_of_overlapping_folders_are_counted_once(tmp_path, made):
    path = made.yolo(tmp_path)
    (tmp_path / "labels/train/x.txt").write_text(made.yolo_line("cat", 1, 2, 9, 12))
    path.write_text("train: [images/train, images]\nnames: [cat, dog]\n")
    _, report = read(tmp_path)
    assert [p.boxes for p in report.problems if "no image takes" in p.kind] == [1]
    assert report.images_left_out == 3


def test_one_label_file_of_two_images_is_noted(tmp_path, made):
    made.yolo(tmp_path)
    made.image(tmp_path / "images/train/a.bmp")
    _, report = read(tmp_path)
    assert (report.boxes_in, kinds(report)) == (7, {"label file of several images": 1})


def test_labels_with_an_upper_case_suffix_are_read(tmp_path, made):
    made.yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "labels/train/a.TXT")
    _, report = read(tmp_path)
    assert (report.boxes_kept, report.problems) == (4, ())


# ---------------------------------------------------------------------- VOC trees with subfolders, and their lists


def with_subfolder(tree):
    """``a`` and ``b`` in a subfolder of both folders, as CVAT writes them."""
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".png")):
        (tree / folder / "sub").mkdir()
        for stem in "ab":
            (tree / folder / f"{stem}{suffix}").rename(tree / folder / "sub" / f"{stem}{suffix}")
    return tree


def test_a_tree_with_subfolders_is_read_whole_without_lists(tmp_path, made):
    tree = with_subfolder(made.voc(tmp_path / "tree"))
    (tree / "ImageSets/Main/train.txt").unlink()
    annotations, report = read(tree, "all")
    assert names_of(annotations) == ["JPEGImages/c.png", "JPEGImages/sub/a.png", "JPEGImages/sub/b.png"]
    assert (report.boxes_in, report.boxes_kept, report.problems) == (4, 4, ())
    assert annotations.class_names == ("cat", "dog")
    assert check_data(tree).ok


@pytest.mark.parametrize("lines", ["sub/a\nsub/b\nc\n", '"sub/a"\nsub/b.png\n./c\n'])
def test_a_tree_with_subfolders_is_read_by_its_lists(lines, tmp_path, made):
    tree = with_subfolder(made.voc(tmp_path / "tree"))
    (tree / "ImageSets/Main/train.txt").write_text(lines)
    annotations, report = open_data(tree).read("train")
    assert names_of(annotations) == ["JPEGImages/sub/a.png", "JPEGImages/sub/b.png", "JPEGImages/c.png"]
    assert (report.boxes_in, report.boxes_kept, report.problems) == (4, 4, ())


def test_all_files_in_subfolders_have_classes(tmp_path, made):
    tree = with_subfolder(made.voc(tmp_path / "tree", {k: made.boxes[k] for k in "ab"}))
    (tree / "ImageSets/Main/train.txt").write_text("sub/a\nsub/b\n")
    assert open_data(tree).read("train")[0].class_names == ("cat", "dog")


def test_images_without_an_xml_file_and_xml_files_without_an_image_are_named(tmp_path, made):
    tree = with_subfolder(made.voc(tmp_path / "tree"))
    (tree / "ImageSets/Main/train.txt").unlink()
    made.image(tree / "JPEGImages/sub/extra.png")
    (tree / "JPEGImages/sub/a.png").unlink()
    _, report = read(tree, "all")
    assert kinds(report) == {"image file missing": 1, "image without an XML file, not read": 1}
    assert report.boxes_left_out == 3


def test_xml_files_of_no_list_are_noted(tmp_path, made):
    tree = made.voc(tmp_path / "tree")
    (tree / "ImageSets/Main/train.txt").write_text("a\n")
    (tree / "ImageSets/Main/val.txt").write_text("b\n")
    made.image(tree / "JPEGImages/extra.png")
    for split in ("train", "val"):
        report = open_data(tree).read(split)[1]
        assert kinds(report) == {
            "XML file that no list in ImageSets/Main names, not read": 1,
            "image without an XML file, not read": 1,
        }


def test_xml_files_with_an_upper_case_suffix_are_read(tmp_path, made):
    tree = made.voc(tmp_path / "tree")
    (tree / "Annotations/a.xml").rename(tree / "Annotations/a.XML")
    assert read(tree)[1].boxes_kept == 4
    (tree / "Annotations/a.xml").write_text(made.voc_xml("a", []))
    assert kinds(read(tree)[1]) == {"several XML files of one stem, the first is taken": 1}


@pytest.mark.parametrize(
    ("split", "lists", "splits"),
    [
        ("default", {"cat_default": "a 1\nb -1\nc 0\n", "dog_default": "a 1\nb 1\nc -1\n"}, ("default",)),
        ("train", {"cat_train": "a  1\nb -1\nc -1\n", "cat_trainval_train": "a 1\nb 1\nc 1\n"}, ("train",)),
        ("trainval", {"cat_trainval": "a  1\nb -1\nc -1\n", "nothing_trainval": ""}, ("trainval",)),
        ("train", {"fold1": "a\nb\n", "cat_fold1": "a 1\nb -1\n"}, ("train", "fold1")),
    ],
)
def test_lists_of_classes_are_no_splits(split, lists, splits, tmp_path, made):
    tree = made.voc(tmp_path / "tree", split=split)
    for name, text in lists.items():
        (tree / f"ImageSets/Main/{name}.txt").write_text(text)
    assert open_data(tree).splits == splits
    assert len(open_data(tree).read(split)[0]) == 3


def test_images_named_like_marks_are_no_list_of_a_class(tmp_path, made):
    tree = made.voc(tmp_path / "tree", {"dog 1": made.boxes["b"], "dog 0": made.boxes["a"]}, split="night")
    assert open_data(tree).splits == ("night",)


def test_a_list_that_cannot_be_read_does_not_hide_the_others(tmp_path, made):
    tree = made.voc(tmp_path / "tree")
    (tree / "ImageSets/Main/odd.txt").write_bytes(b"\xff\xfe\xff")
    assert open_data(tree).splits == ("train", "odd")
    assert open_data(tree).read("train")[1].problems == ()
    with pytest.raises(DataError, match=r"odd\.txt: encoding"):
        open_data(tree).read("odd")


# ---------------------------------------------------------------------- splits that are not there


def roboflow(folder, made):
    """Roboflow's layout, whose ``data.yaml`` names ``../train/images`` for the folder beside it."""
    (folder / "train").mkdir(parents=True)
    made.yolo(folder)
    (folder / "images/train").rename(folder / "train/images")
    (folder / "labels/train").rename(folder / "train/labels")
    path = folder / "data.yaml"
    path.write_text("train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat, dog]\n")
    return path


def test_the_folder_in_the_data_set_goes_before_one_beside_it(tmp_path, made):
    path = roboflow(tmp_path / "set", made)
    made.image(tmp_path / "train/images/stray.png")
    annotations, report = read(path)
    assert names_of(annotations) == [f"train/images/{name}" for name in made.names]
    assert [p.message for p in report.problems] == [
        f"{path}: train: folder in the data set, not the one beside it, is taken, got '../train/images'"
    ]
    open_data(path).read("train")


def test_a_folder_beside_the_yaml_file_is_taken_where_there_is_none_in_it(tmp_path, made):
    made.yolo(tmp_path)
    (tmp_path / "config").mkdir()
    path = tmp_path / "config/data.yaml"
    path.write_text("train: ../images/train\nnames: [cat, dog]\n")
    assert len(read(path)[0]) == 3


def test_a_split_of_a_yaml_file_that_is_not_there_matters_to_those_who_ask_for_it(tmp_path, made):
    path = roboflow(tmp_path / "set", made)
    assert len(open_data(path).read("train")[0]) == 3
    with pytest.raises(AbsentError) as caught:
        open_data(path).read("test")
    assert str(caught.value) == (
        f"{path}: test, got '../test/images'; allowed: a folder or list that exists "
        f"(not {tmp_path}/set/test/images or {tmp_path}/test/images)"
    )
    result = check_data(path)
    assert result.ok
    assert list(result.reports) == ["train"]
    assert list(result.absent) == ["val", "test"]
    assert "test: not there (note)" in result.text()
    assert not check_data(path, ["test"]).ok


def test_a_yaml_file_of_which_no_split_is_there_is_refused(tmp_path, made):
    path = made.yolo(tmp_path)
    path.write_text("path: elsewhere\nval: images\ntest: images\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"val, got 'images'; allowed: .*\(not .*/elsewhere/images\)"):
        open_data(path)


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_a_split_of_a_data_file_that_is_not_there_matters_to_those_who_ask_for_it(kind, tmp_path, made):
    made_at = getattr(made, kind)(tmp_path / "set")
    named = {
        "coco": f"images = 'set/train'\nannotations = '{made_at}'",
        "voc": f"trees = '{made_at}'",
        "yolo": "images = 'set/images/train'",
    }[kind]
    path = tmp_path / "d.toml"
    classes = "" if kind == "coco" else "classes = ['cat', 'dog']"
    elsewhere = named.replace("set", "no")
    path.write_text(f"format = '{kind}'\n{classes}\n[splits.train]\n{named}\n[splits.test]\n{elsewhere}\n")
    assert open_data(path).splits == ("train", "test")
    assert len(open_data(path).read("train")[0].boxes) == 4
    with pytest.raises(AbsentError, match=r"splits\.test\..*, got .*; allowed: a path that exists"):
        open_data(path).read("test")
    assert check_data(path).ok


def test_two_lists_for_val_are_two_splits(tmp_path, made):
    tree = made.voc(tmp_path / "tree")
    for name, text in (("val", "a\n"), ("valid", "b\n"), ("test", "c\n")):
        (tree / f"ImageSets/Main/{name}.txt").write_text(text)
    assert open_data(tree).splits == ("train", "val", "valid", "test")
    assert names_of(open_data(tree).read("valid")[0]) == ["JPEGImages/b.png"]
    assert names_of(open_data(tree).read("validation")[0]) == ["JPEGImages/a.png"]


def test_a_second_key_for_val_is_noted(tmp_path, made):
    path = made.yolo(tmp_path)
    path.write_text("val: images/train\nvalid: images\nnames: [cat, dog]\n")
    assert kinds(read(path, "val")[1]) == {"key passed over, val is taken": 1}


# ---------------------------------------------------------------------- boxes that are normalised

SHARES = [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [0.5, 0.5, 0.25, 0.5], [0.25, 0, 0.5, 0.75]]


def test_normalised_boxes_of_a_coco_file_are_refused_as_a_whole(tmp_path, made):
    content = made.coco_content()
    for annotation, box in zip(content["annotations"], SHARES, strict=True):
        annotation["bbox"] = box
    path = made.coco(tmp_path, content)
    for strict in (True, False):
        with pytest.raises(DataError) as caught:
            open_data(tmp_path).read("train", strict=strict)
        first, second = str(caught.value).splitlines()
        assert first.startswith(f"{path}: annotation 1: box within 0..1, as if normalised, got [0.1, 0.2, 0.4, 0.6]")
        assert second.startswith("4 of 4 boxes in")
        assert "write them in pixels" in second
    assert not check_data(tmp_path).ok


@pytest.mark.parametrize("name", ["tree", "VOC2007"])
def test_normalised_boxes_of_a_voc_tree_are_refused_as_a_whole(name, tmp_path, made):
    boxes = {s: [(c, 0.1, 0.2, 0.4, 0.6) for c, *_ in own] for s, own in made.boxes.items()}
    tree = made.voc(tmp_path / name, boxes)
    with pytest.raises(DataError, match=r"a\.xml: object 1: box within 0\.\.1, as if normalised(.|\n)*4 of 4 boxes"):
        open_data(tree).read("train", strict=False)


def test_single_normalised_boxes_are_left_out(tmp_path, made):
    content = made.coco_content()
    content["annotations"][0]["bbox"] = SHARES[0]
    made.coco(tmp_path, content)
    _, report = read(tmp_path)
    assert (report.boxes_in, report.boxes_left_out) == (4, 1)
    assert report.refused[0].kind == "box within 0..1, as if normalised"


def test_boxes_in_tiny_images_are_not_taken_for_normalised(tmp_path, made):
    content = made.coco_content()
    for image in content["images"]:
        image |= {"width": 4, "height": 4}
    for annotation in content["annotations"]:
        annotation["bbox"] = [0, 0, 1, 1]
    made.coco(tmp_path, content)
    assert read(tmp_path)[1].problems == ()


# ---------------------------------------------------------------------- poses
