"""Damaged image files: each is listed with its reason, or gives an image that no decoder has filled up."""

import io
import warnings
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from drloss.data.batches import EvaluationImages
from drloss.data.checks.images import check_images
from drloss.data.formats.opening import open_data
from drloss.data.images.decoding import read_image
from drloss.data.images.jpeg_checks import check_scans
from drloss.errors import DataError, UserError
from support.image_files import PIXELS, RNG, save

HEIGHT, WIDTH = 48, 64
BATCH = 500
KINDS = {
    "jpg": {},
    "progressive.jpg": {"progressive": True},
    "restarts.jpg": {"restart_marker_rows": 1},
    "png": {},
    "bmp": {},
    "gif": {},
    "webp": {},
    "tiff": {"compression": "tiff_lzw"},
}


def picture():
    """Noise on slopes of a colour that is far from grey."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(4).integers(0, 40, (HEIGHT, WIDTH, 3))
    return Image.fromarray((np.stack([x, 120 + y, 30 + (x + y) // 2], axis=-1) + noise).astype(np.uint8))


def encoded(kind):
    file = io.BytesIO()
    suffix = kind.rpartition(".")[2]
    picture().save(file, {"jpg": "JPEG", "tiff": "TIFF"}.get(suffix, suffix), **KINDS[kind])
    return file.getvalue()


def damaged(rng, data):
    """``data`` cut short, with some bits flipped, or with some bytes of its head changed."""
    changed = bytearray(data)
    way = rng.choice(("cut", "flip", "head"))
    if way == "cut":
        del changed[rng.randrange(len(data)) :]
    for _ in range(0 if way == "cut" else rng.randint(1, 4)):
        if way == "flip":
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            changed[rng.randrange(min(len(data), 700))] = rng.randrange(256)
    return way, bytes(changed)


def grey_share(image):
    """Of the pixels that are exactly the grey of a JPEG without data."""
    return float((image == 128).all(dim=0).float().mean())


@pytest.mark.soak
def test_each_damaged_image_is_reported_or_holds_no_filled_part(soak, figure, tmp_path, made):
    files = 20_000 if soak else BATCH
    whole = {kind: encoded(kind) for kind in KINDS}
    for kind, data in whole.items():
        (tmp_path / kind).write_bytes(data)
    intact = {kind: read_image(tmp_path / kind) for kind in KINDS}
    content = made.coco_content() | {"annotations": []}
    rng, seen, reasons = Random(17), Counter(), Counter()
    for start in range(0, files, BATCH):
        ways, images = [], []
        folder = tmp_path / str(start)
        (folder / "train").mkdir(parents=True)
        for k in range(BATCH):
            kind = rng.choice(list(KINDS))
            way, data = damaged(rng, whole[kind])
            ways.append((way, kind))
            (folder / "train" / f"{k}.{kind}").write_bytes(data)
            images.append({"id": k, "file_name": f"{k}.{kind}", "height": HEIGHT, "width": WIDTH})
        made.coco(folder, content | {"images": images})
        annotations, report = open_data(folder).read("train")
        kept, report = check_images(annotations, report, strict=False)
        assert report.images_in == BATCH == len(kept) + report.images_left_out
        listed = {int(Path(p.file).name.partition(".")[0]): p for p in report.problems}
        assert len(listed) == report.images_left_out
        for k, problem in listed.items():
            assert problem.file.endswith(f"/{k}.{ways[k][1]}")
            reasons[problem.kind] += 1
            assert problem.reason
        # The real images through the real workers: those that are listed come back as their error, all others load.
        split = EvaluationImages(annotations, HEIGHT, WIDTH)
        loader = DataLoader(split, batch_sampler=split.batches(20), num_workers=2 * soak, collate_fn=list)
        loaded, failed = {}, set()
        for keys, samples in zip(split.batches(20), loader, strict=True):
            for key, sample in zip(keys, samples, strict=True):
                if isinstance(sample, UserError):
                    failed.add(key.index)
                else:
                    loaded[key.index] = sample[0]
        assert failed == set(listed)
        for k, image in loaded.items():
            way, kind = ways[k]
            if way == "cut":
                assert torch.equal(image[:, :HEIGHT, :WIDTH], intact[kind])  # what was cut held no pixels
            seen[way] += 1
            # Damaged colours of a WebP may be flat and grey here and there; no decoder but JPEG's fills with it.
            assert grey_share(image[:, :HEIGHT, :WIDTH]) < (0.02 if "jpg" in kind else 0.25), (k, kind, way, start)
    figure(
        "T17",
        f"{files:,} damaged images of {len(KINDS)} kinds, 0 worker deaths, 0 with a part filled up grey: "
        f"{sum(reasons.values()):,} listed with their reason, {sum(seen.values()):,} decode",
    )


@pytest.mark.parametrize("kind", ["jpg", "restarts.jpg"])
def test_a_jpeg_whose_data_end_at_a_false_marker_is_refused(kind, tmp_path):
    data = bytearray(encoded(kind))
    middle = data.index(b"\xff\xda") + 100
    data[middle : middle + 2] = b"\xff\xd9"
    path = tmp_path / "x.jpg"
    path.write_bytes(bytes(data))
    with Image.open(path) as image:
        image.load()  # Pillow says nothing
    with pytest.raises(DataError, match=r"no data|restart markers|truncated"):
        read_image(path)


@pytest.mark.parametrize("options", list({k: v for k, v in KINDS.items() if k.endswith("jpg")}.values()))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_is_grey_by_right_is_read(options, mode, tmp_path):
    path = tmp_path / "x.jpg"
    for size in ((WIDTH, HEIGHT), (5, 3), (203, 101)):
        grey = Image.new("RGB", size, (128, 128, 128))
        grey.paste(picture().resize((max(1, size[0] // 2), max(1, size[1] // 2))))
        grey.convert(mode).save(path, **options)
        with Image.open(path) as image:
            expected = torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy())
        assert torch.equal(read_image(path), expected)


def test_a_grey_jpeg_with_more_markers_than_blocks_or_far_too_many_bytes_is_refused(tmp_path):
    path = tmp_path / "flood.jpg"
    image = Image.new("L", (16, 16), 128)
    image.save(path)
    whole = path.read_bytes()
    for flood in (b"".join(bytes([0xFF, 0xD0 + k % 8]) for k in range(300_000)), bytes(80_000_000)):
        path.write_bytes(whole[:-2] + flood + whole[-2:])
        with pytest.raises(ValueError, match="damaged: it has"):
            check_scans(path, image)


def jpeg(size=(64, 48)):
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


BAD = {
    "missing": (None, "no such image file"),
    "empty": (b"", "empty file"),
    "text": (b"hello", "not an image of a known format"),
    "truncated JPEG": (jpeg()[:-900], "truncated"),
    "half a JPEG": (jpeg()[: len(jpeg()) // 2], "truncated"),
    "JPEG header alone": (jpeg()[:300], "cannot be decoded"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) show\n", "not an image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_unusable_files_are_named(kind, tmp_path):
    data, words = BAD[kind]
    path = tmp_path / "x.jpg"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp", "jpg"])
def test_no_truncated_file_gives_a_grey_image(suffix, tmp_path):
    whole = save(tmp_path / f"whole.{suffix}", Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)))
    data = whole.read_bytes()
    expected = read_image(whole)
    for share in np.linspace(0.02, 0.95, 25):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(data[: int(share * len(data))])
        try:
            image = read_image(path)
        except DataError:
            continue
        assert torch.equal(image, expected)  # what was cut held no pixels


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp", "jpg", "ppm"])
def test_damaged_bytes_give_an_image_or_a_named_error(suffix, tmp_path):
    rng = np.random.default_rng(1)
    data = save(tmp_path / f"x.{suffix}", Image.fromarray(PIXELS)).read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    for _ in range(100):
        changed = bytearray(data)
        for position in rng.integers(0, min(len(data), 200), 3):
            changed[position] = rng.integers(0, 256)
        path.write_bytes(bytes(changed))
        message = str(path)
        try:
            read_image(path, max_pixels=10_000)
        except DataError as error:
            message = str(error)
        assert str(path) in message


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp", "jpg", "ppm"])
def test_what_a_plain_decoding_refuses_is_refused(suffix, tmp_path):
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:60, :80]
    picture = Image.fromarray(np.stack([x + y, 2 * y, 3 * x], axis=-1).astype(np.uint8))
    data = save(tmp_path / f"x.{suffix}", picture).read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    refused = 0
    for _ in range(200):
        changed = bytearray(data)
        changed[rng.integers(30, len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
        try:
            with warnings.catch_warnings(), Image.open(path) as image:
                warnings.simplefilter("ignore")
                image.load()
        except Exception:
            refused += 1
            with pytest.raises(DataError):
                read_image(path)
    assert refused or suffix not in ("png", "webp")


@pytest.mark.parametrize("colours", ["smooth", "noise"])
def test_no_damaged_png_gives_other_pixels(colours, tmp_path):
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:60, :80]
    pixels = np.stack([x + y, 2 * y, 3 * x], axis=-1) if colours == "smooth" else rng.integers(0, 256, (30, 40, 3))
    path = save(tmp_path / "x.png", Image.fromarray(pixels.astype(np.uint8)))
    data, expected = path.read_bytes(), read_image(path)
    refused = 0
    for position in rng.integers(8, len(data), 400):
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
        try:
            assert torch.equal(read_image(path), expected)
        except DataError:
            refused += 1
    assert refused > 300
