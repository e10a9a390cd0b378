"""A validation split for a data set that has none: disjoint, the same every time, no copies across it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from drloss.data.annotations import Annotations
from drloss.data.formats.opening import open_data
from drloss.data.formats.shapes import open_shapes
from drloss.data.splitting import Splits, _bits, _join_frames, _join_similar, make_splits, select_splits
from drloss.errors import DataError, UserError
from drloss.io.atomic import write_json

SIZE = 96


def picture(seed, cells=7):
    """A picture of random soft blobs."""
    small = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def annotated(root, names, labels=None, ignore=()):
    """One box for each image; ``labels`` is a class for each image, ``ignore`` the images whose box is ignored."""
    count = len(names)
    return Annotations(
        name="things train",
        class_names=("cat", "dog"),
        category_ids=np.array([1, 2]),
        image_ids=np.arange(1, count + 1),
        image_names=np.array([name.encode() for name in names]),
        image_root=root,
        sizes=np.full((count, 2), SIZE, np.int32),
        first_box=np.arange(count + 1),
        boxes=np.tile([1.0, 2.0, 30.0, 40.0], (count, 1)),
        labels=np.ones(count, np.int64) if labels is None else np.array(labels),
        ignore=np.isin(np.arange(count), ignore),
        areas=np.full(count, 1102.0),
    )


@pytest.fixture
def root(tmp_path):
    """Twenty different pictures without numbers in their names."""
    (tmp_path / "a").mkdir()
    for k in range(20):
        picture(k).save(tmp_path / "a" / f"{chr(97 + k)}.jpg", quality=95)
    return tmp_path


def names_in(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*.*") if p.is_file())


def split(root, **options):
    return make_splits(annotated(root, names_in(root)), **options)


def part_of(splits, name):
    assert (name in splits.train) != (name in splits.val)
    return "train" if name in splits.train else "val"


def together(root, *names, seeds=8):
    """Whether the images are in the same part whatever the seed; by chance they hardly are."""
    made = [split(root, seed=seed, fraction=0.5) for seed in range(seeds)]
    return all(len({part_of(splits, name) for name in names}) == 1 for splits in made)


# ---------------------------------------------------------------------- the splits


@pytest.mark.parametrize(("fraction", "count"), [(0.2, 4), (0.001, 1), (0.999, 19), (0.5, 10), (0.33, 7)])
def test_every_image_is_in_one_part_and_validation_has_its_share(root, fraction, count):
    splits = split(root, fraction=fraction)
    assert sorted(splits.train + splits.val) == names_in(root)
    assert len(splits.val) == count
    assert (splits.fraction, splits.seed, splits.groups) == (fraction, 0, 0)
    assert splits.rule.startswith(f"{100 * fraction:g} % of the images are for validation")


def test_they_do_not_depend_on_order_or_folder(root, tmp_path):
    picture(3).save(root / "a" / "again.jpg", quality=60)
    splits = split(root)
    names = names_in(root)
    for seed in range(3):
        shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        assert make_splits(annotated(root, shuffled)) == splits
    shutil.move(root / "a", root / "other")
    moved = split(root)
    assert [n.replace("other/", "a/") for n in moved.val] == list(splits.val)


def test_another_seed_makes_others(root):
    assert len({split(root, seed=seed).val for seed in range(5)}) == 5


def test_progress_is_told(root):
    steps = []
    split(root, progress=lambda *step: steps.append(step))
    assert steps == [(k, 20) for k in range(1, 21)]


# ---------------------------------------------------------------------- what stays together


def test_different_pictures_are_not_kept_together(tmp_path):
    for k in range(300):
        picture(k, cells=3 + k % 6).save(tmp_path / f"{k:03}.png")
    assert split(tmp_path).groups == 0


def test_copies_in_other_folders_stay_together(root):
    (root / "b").mkdir()
    for letter in "abc":
        shutil.copy(root / "a" / f"{letter}.jpg", root / "b" / f"{letter * 2}.jpg")
    assert split(root).groups == 3
    assert together(root, "a/a.jpg", "b/aa.jpg")
    assert together(root, "a/c.jpg", "b/cc.jpg")
    assert not together(root, "a/a.jpg", "a/c.jpg")


def test_augmentations_of_one_source_stay_together(root):
    (root / "b").mkdir()
    siblings = ["a/x_jpg.rf.0a1b.jpg", "b/x_jpg.rf.ffff.jpg", "b/x_jpg.rf.1234.png"]
    for k, name in enumerate([*siblings, "b/y_jpg.rf.0a1b.jpg"]):
        picture(100 + k).save(root / name)
    assert split(root).groups == 1
    assert together(root, *siblings)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: ImageEnhance.Brightness(image).enhance(0.85),
        lambda image: ImageEnhance.Contrast(image).enhance(0.8),
        lambda image: image.resize((64, 64)),
        lambda image: image.crop((1, 1, SIZE, SIZE)),
    ],
)
def test_a_picture_saved_anew_stays_with_its_original(root, change):
    for k in range(5):
        change(picture(k)).save(root / "a" / f"{chr(97 + k)}-anew.jpg", quality=60)
    assert split(root).groups == 5
    assert together(root, "a/a.jpg", "a/a-anew.jpg")


def test_frames_of_a_video_stay_together(tmp_path):
    for clip in range(4):
        scene = picture(clip).resize((4 * SIZE, 4 * SIZE))
        for k in range(10):
            number, left = 100 * clip + 10 * k, 6 * k
            scene.crop((left, left, left + 3 * SIZE, left + 3 * SIZE)).save(tmp_path / f"frame_{number}.jpg")
    splits = split(tmp_path, fraction=0.25)
    assert (splits.groups, len(splits.val)) == (4, 10)
    assert len({int(name[6:-4]) // 100 for name in splits.val}) == 1


def test_a_sequence_of_different_pictures_is_none(tmp_path):
    for k in range(30):
        picture(k).save(tmp_path / f"{k}.png")
    assert split(tmp_path).groups == 0


def test_plain_pictures_are_not_alike(tmp_path):
    noise = np.random.default_rng(0)
    for k in range(40):
        pixels = 200 + noise.normal(0, 4, (SIZE, SIZE, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{chr(97 + k // 10)}{'xyzuvwrstk'[k % 10]}.png")
    assert split(tmp_path).groups == 0


def test_many_pictures_that_look_alike_are_one_group_and_few_comparisons():
    cells = np.random.default_rng(0).normal(100, 30, 72) + np.random.default_rng(1).normal(0, 0.5, (20_000, 72))
    groups = _join_similar(np.arange(len(cells)), cells.astype(np.float32))
    assert np.bincount(groups).max() > 19_900


def test_pictures_that_cannot_be_decoded_are_like_no_other():
    cells = np.full((5, 72), np.nan, np.float32)
    assert _join_similar(np.arange(5), cells).tolist() == list(range(5))
    assert _join_frames(np.arange(5), [f"{k}.png" for k in range(5)], cells).tolist() == list(range(5))


def test_bits_are_counted():
    values = [0, 1, 2**64 - 1, 0x8000_0000_0000_0001, 0xF0F0 << 20]
    assert _bits(np.array(values, np.uint64)).tolist() == [value.bit_count() for value in values]


def test_a_large_group_does_not_exceed_the_share(root):
    for k in range(10):
        shutil.copy(root / "a" / "a.jpg", root / f"copy-{'abcdefghij'[k]}.jpg")
    for seed in range(10):
        splits = split(root, seed=seed)
        assert len(splits.val) == 6
        assert "a/a.jpg" in splits.train


def test_a_group_may_exceed_the_share_if_that_is_nearer(tmp_path):
    for k in range(10):
        picture(k // 5).save(tmp_path / f"{chr(97 + k)}.png")  # two groups of five
    splits = split(tmp_path, fraction=0.3)
    assert len(splits.val) == 5
    assert splits.groups == 2


def test_pictures_are_divided_though_all_look_alike(tmp_path):
    for k in range(10):
        picture(0).save(tmp_path / f"{chr(97 + k)}.jpg", quality=80 + k)
    splits = split(tmp_path)
    assert (len(splits.val), splits.groups) == (2, 0)
    assert "too many pictures look alike" in splits.rule


def test_damaged_and_missing_images_are_divided_too(root):
    for k in range(5):
        (root / "a" / f"bad{'abcde'[k]}.jpg").write_bytes(b"no picture")
    (root / "a" / "cut.jpg").write_bytes((root / "a" / "a.jpg").read_bytes()[:500])
    (root / "a" / "empty.jpg").write_bytes(b"")
    names = [*names_in(root), "a/gone.jpg", "a/lost.jpg", "a"]
    splits = make_splits(annotated(root, names))
    assert sorted(splits.train + splits.val) == sorted(names)
    assert splits.groups == 1  # the five with the same bytes


def test_generated_images_are_divided():
    data, _ = open_shapes("shapes:train=30,val=1,size=64").read("train")
    splits = make_splits(data)
    assert len(splits.val) == 6
    assert make_splits(data.select(np.arange(30)[::-1])) == splits
    _, val, _ = select_splits(data, splits)
    assert tuple(val.image_name(i) for i in range(6)) == splits.val


# ---------------------------------------------------------------------- classes


def test_a_class_keeps_boxes_for_training(root):
    rare = [1] * 18 + [2] * 2
    data = annotated(root, names_in(root), rare)
    for seed in range(30):
        train, _, _ = select_splits(data, make_splits(data, fraction=0.5, seed=seed))
        assert set(train.labels.tolist()) == {1, 2}


def test_ignored_boxes_are_none(root):
    data = annotated(root, names_in(root), [1] * 18 + [2] * 2, ignore=[18])
    for seed in range(30):
        assert part_of(make_splits(data, fraction=0.5, seed=seed), "a/t.jpg") == "train"


# ---------------------------------------------------------------------- selecting


def test_selected_parts_have_the_splits_images(root):
    data = annotated(root, names_in(root), [1, 2] * 10)
    splits = make_splits(data.select(np.arange(18)))
    train, val, neither = select_splits(data, splits)
    assert tuple(train.image_name(i) for i in range(len(train))) == splits.train
    assert tuple(val.image_name(i) for i in range(len(val))) == splits.val
    assert [neither.image_name(i) for i in range(len(neither))] == ["a/s.jpg", "a/t.jpg"]


def test_images_that_are_gone_are_refused(root):
    data = annotated(root, names_in(root))
    splits = make_splits(data)
    with pytest.raises(DataError, match=r"things train: 2 of the 20 images .* not there, the first is 'a/a\.jpg'"):
        select_splits(data.select(np.arange(2, 20)), splits)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), float("inf"), True, "0.2"])
def test_a_fraction_is_between_0_and_1(root, fraction):
    with pytest.raises(UserError, match=r"--val-fraction: got .*; allowed: a number above 0 and below 1"):
        split(root, fraction=fraction)


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_cannot_be_divided(root, count):
    with pytest.raises(DataError, match=rf"things train: number of images, got {count}; .* --val-split none"):
        make_splits(annotated(root, names_in(root)[:count]))


def test_copies_alone_cannot_be_divided(tmp_path):
    for k in range(4):
        picture(0).save(tmp_path / f"{k}.png")
    with pytest.raises(DataError, match=r"all 4 images are copies or come from one source; .* --val-split none"):
        split(tmp_path)


def test_classes_of_one_image_each_cannot_be_divided(root):
    with pytest.raises(DataError, match=r"no image can go to validation.* --val-split none"):
        make_splits(annotated(root, names_in(root)[:2], [1, 2]))


# ---------------------------------------------------------------------- splits.json

GOOD = Splits(("a/x.jpg", "ä.png"), ("c.jpg",), 0.25, 3, 1, "By hand.")


def test_splits_survive_their_file(tmp_path, root):
    for splits in (GOOD, split(root)):
        write_json(tmp_path / "splits.json", splits.to_json())
        assert Splits.from_json(tmp_path / "splits.json") == splits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": []}, r"train, got \[\]; allowed: a list of one or more image names, each once"),
        ({"val": ["a", 3]}, r"val, got \['a', 3\]; allowed"),
        ({"val": "a"}, "val, got 'a'; allowed"),
        ({"val": ["c", "c"]}, r"val, got \['c', 'c'\]; allowed"),
        ({"val": ["a/x.jpg"]}, r"val, got 'a/x.jpg', which is in train; allowed"),
        ({"fraction": 1}, "fraction, got 1; allowed: a number above 0 and below 1"),
        ({"fraction": None}, "fraction, got None; allowed"),
        ({"seed": 1.5}, "seed, got 1.5; allowed: an integer"),
        ({"seed": True}, "seed, got True; allowed"),
        ({"groups": -1}, "groups, got -1; allowed: an integer of at least 0"),
        ({"rule": 1}, "rule, got 1; allowed: a sentence"),
        ({"more": 1}, "keys, got .*; allowed: an object with train, val, fraction, seed, groups, rule"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, change, message):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(GOOD.to_json() | change))
    with pytest.raises(DataError, match=rf"splits\.json: {message}"):
        Splits.from_json(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"keys, got \[\]; allowed"),
        ('"train"', "keys, got 'train'; allowed"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"seed": ' + "1" * 5000 + "}", "not JSON"),
        ("[" * 5_000_001, "allowed: at most 5,000,000"),
        (b"\xff\xfe{", "encoding"),
    ],
)
def test_a_file_that_is_no_split_is_refused(tmp_path, text, message):
    path = tmp_path / "splits.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"splits\.json: .*{message}"):
        Splits.from_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"splits\.json: no such file"):
        Splits.from_json(tmp_path / "splits.json")


# ---------------------------------------------------------------------- public data sets


@pytest.mark.parametrize(
    ("name", "groups"),
    [("bccd", (0, 1)), ("microcontroller_400", (0, 5)), ("fod_a_s10", (100, 300))],
)
def test_public_data_sets(real_data, name, groups):
    if not (real_data / name).is_dir():
        pytest.skip(f"no folder {name} in DRLOSS_TEST_DATA")
    data, _ = open_data(real_data / name).read("train")
    splits = make_splits(data)
    assert groups[0] <= splits.groups <= groups[1]
    assert len(splits.val) == int(0.2 * len(data) + 0.5)
    train, val, neither = select_splits(data, splits)
    assert (len(train) + len(val), len(neither)) == (len(data), 0)
    assert set(train.labels.tolist()) == set(data.labels.tolist())
    assert make_splits(replace(data.select(np.arange(len(data))[::-1]), name="x")) == splits
