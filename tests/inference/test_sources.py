"""What ``drloss predict`` takes for images and videos, and how it names them."""

import os

import pytest

from drloss.errors import UserError
from drloss.inference.predicting.formats import stem_of, unique_stems
from drloss.inference.predicting.pictures import class_folders
from drloss.inference.predicting.sources import find_sources


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Two folders with images of the same names, a video and other files; the working folder is above them."""
    for name in ("one/a.jpg", "one/deep/b.PNG", "two/a.jpg", "two/clip.mp4", "two/notes.doc", "two/.hidden.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(sources):
    return [source.name for source in (*sources.images, *sources.videos)]


def test_a_mix_of_everything_has_each_file_once_under_a_name_of_its_own(tree):
    (tree / "list.txt").write_text("one/a.jpg\n\n" + str(tree / "two" / "a.jpg") + "\r\ntwo/not there.jpg\n")
    found = find_sources(["one", "two/*", "list.txt", "one/a.jpg", "./two/../two/clip.mp4"], tree / "out")
    assert names(found) == ["one/a.jpg", "one/deep/b.PNG", "two/a.jpg", "two/not there.jpg", "two/clip.mp4"]
    assert found.root == tree
    assert all(os.path.samefile(source.path, tree / source.name) for source in found.images[:3])
    assert dict(found.passed["two/*"]) == {"file with suffix .doc, not taken for an image": 1}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["one"], ["a.jpg", "deep/b.PNG"]),
        (["one/deep/b.PNG"], ["b.PNG"]),
        (["**/*.jpg"], ["one/a.jpg", "two/a.jpg"]),
        (["t*"], ["two/a.jpg"]),
        (["two/clip.mp4"], ["clip.mp4"]),
        (["one/deep", "one"], ["deep/b.PNG", "a.jpg"]),
    ],
)
def test_names_are_relative_to_what_was_named(tree, words, wanted):
    assert names(find_sources(words, tree / "out")) == wanted


def test_what_a_folder_has_besides_is_counted(tree):
    passed = find_sources(["two"], tree / "out").passed["two"]
    assert sorted(passed.items()) == [
        ("file with suffix .doc, not taken for an image", 1),
        ("hidden image file, not read", 1),
        ("video in a folder, not read; name it to have it read", 1),
    ]


def test_the_folder_of_results_is_not_searched_nor_counted(tree):
    for name in ("pictures/a.jpg", "predictions.jsonl", "predict.json"):
        path = tree / "one" / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for words in (["one"], ["one/**/*.*"]):
        found = find_sources(words, tree / "one" / "out")
        assert names(found) == ["a.jpg", "deep/b.PNG"]
    assert find_sources(["one"], tree / "one" / "out").passed == {}


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("three", "three: no such file or folder"),
        ("*.tiff", r"\*\.tiff: no file matches"),
        ("one/dee", "one/dee: no such file or folder"),
        ("empty", r"empty: no image in it \(.*\); 1 x video in a folder"),
        ("binary.txt", "binary.txt: is no list of files"),
        ("nothing.txt", "nothing.txt: no image in it"),
    ],
)
def test_what_is_not_there_is_named(tree, word, words):
    (tree / "empty").mkdir()
    (tree / "empty" / "a.mov").write_bytes(b"")
    (tree / "binary.txt").write_bytes(b"a\0b")
    (tree / "nothing.txt").write_bytes(b"\n")
    with pytest.raises(UserError, match=words):
        find_sources([word], tree / "out")


def test_results_among_the_images_are_refused(tree):
    for words, out in ((["one"], "one"), (["one/a.jpg"], "one"), (["*/*.jpg"], "two"), (["one"], "one/deep")):
        with pytest.raises(UserError, match="is the folder of the images"):
            find_sources(words, tree / out)


def test_stems_are_unique_also_on_disks_that_ignore_case():
    names = ["a.jpg", "a.png", "A.JPG", "sub/a.jpg", "b", "a.png.jpg", ".c"]
    stems = unique_stems(names, taken={"b.jpg": "b"})
    assert stems == {
        **{"a.jpg": "a", "a.png": "a.png", "A.JPG": "A.JPG", "sub/a.jpg": "sub/a"},
        **{"b": "b-2", "a.png.jpg": "a.png.jpg", ".c": ".c"},
    }
    assert len({stem.casefold() for stem in stems.values()}) == len(names)


def of_frames(stem):
    """Stems of the files of a video's frames: the first, the last of six digits, the first of seven."""
    return {stem_of({"stem": stem, "frame": number}).casefold() for number in (0, 999_999, 1_000_000)}


@pytest.mark.parametrize("begun", [(), ("clip.mp4",), ("clip/000000.jpg", "CLIP/1000000.png", "clip/999999.jpg")])
@pytest.mark.parametrize("video_first", [True, False])
def test_no_image_has_the_stem_of_a_frame(begun, video_first):
    images = ["clip/000000.jpg", "CLIP/1000000.png", "clip/999999.jpg"]
    names = ["clip.mp4", *images] if video_first else [*images, "clip.mp4"]
    taken = unique_stems(begun, {})
    stems = taken | unique_stems([name for name in names if name not in begun], taken)
    assert stems.keys() == set(names)
    assert len({stem.casefold() for stem in stems.values()}) == len(names)
    assert not of_frames(stems["clip.mp4"]) & {stems[name].casefold() for name in images}


def test_images_that_no_frame_can_meet_keep_their_stems():
    names = ["clip.mp4", "clip/a.jpg", "clip/00000.jpg", "clip/0000001.jpg", "a.jpg", "a/000000.jpg", "clip/b.mp4"]
    assert unique_stems(names, {}) == {name: name.rpartition(".")[0] for name in names}


def test_no_image_takes_the_place_of_yolos_list_of_classes():
    assert unique_stems(["classes.mp4"], {}) == {"classes.mp4": "classes"}  # its labels are classes/000000.txt, ...
    assert unique_stems(["Classes.jpg", "a/classes.jpg"], {}) == {
        "Classes.jpg": "Classes.jpg",
        "a/classes.jpg": "a/classes",
    }


def test_names_of_classes_lead_nowhere():
    found = class_folders(["cell", "../up", "/abs", "a/b", "a\\b", "cell", "", ".", "x" * 300, "grün"])
    assert len(set(found)) == 10
    for name in found:
        assert name not in ("", ".", "..")
        assert not {"/", "\\", "."} & set(name)
    assert (found[0], found[-1]) == ("cell", "grün")
