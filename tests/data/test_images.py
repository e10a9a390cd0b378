"""Image files of every kind, pixel for pixel as the module's rules say."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from drloss.data.formats.opening import open_data
from drloss.data.images.decoding import image_size, read_image
from drloss.errors import DataError, UserError
from support.image_files import GREY, PIXELS, exif, png_chunk, save


def chw(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def grey_rgb(grey):
    return np.repeat(grey[:, :, None], 3, axis=2)


TURNED = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: PIXELS[::-1].transpose(1, 0, 2),
    7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
    8: PIXELS[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied_once(orientation, suffix, tmp_path):
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"x.{suffix}", Image.fromarray(PIXELS), exif=exif(orientation), **options)
    expected = chw(TURNED[orientation])
    assert torch.equal(read_image(path), expected)
    assert image_size(path) == tuple(expected.shape[1:])
    assert torch.equal(read_image(path, height=expected.shape[1], width=expected.shape[2]), expected)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_orientation_is_not_applied_where_the_stored_size_is_listed(orientation, tmp_path):
    path = save(tmp_path / "x.png", Image.fromarray(PIXELS), exif=exif(orientation))
    assert torch.equal(read_image(path, height=5, width=7), chw(PIXELS))


def test_a_turn_that_keeps_the_size_is_applied(tmp_path):
    path = save(tmp_path / "x.png", Image.fromarray(PIXELS), exif=exif(3))
    assert torch.equal(read_image(path, height=5, width=7), chw(TURNED[3]))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_count_as_none(orientation, tmp_path):
    path = save(tmp_path / "x.png", Image.fromarray(PIXELS), exif=exif(orientation))
    assert torch.equal(read_image(path), chw(PIXELS))


def test_damaged_exif_counts_as_none(tmp_path):
    path = save(tmp_path / "x.png", Image.fromarray(PIXELS), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03")
    assert torch.equal(read_image(path), chw(PIXELS))


def palette(transparency=None):
    image = Image.frombytes("P", (7, 5), (GREY % 4).tobytes())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 255, 0, 1])
    return image


COLOURS = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [255, 0, 1]], dtype=np.uint8)
ALPHA = np.concatenate([PIXELS, GREY[:, :, None] // 2], axis=2)
WIDE = (GREY.astype(np.uint16) << 8) + 77


def grey16(path):
    return save(path, Image.frombytes("I;16", (7, 5), WIDE.astype("<u2").tobytes()))


def tiff(path, data, *, bits, photometric=1, sample_format=1, samples=1):
    """An uncompressed TIFF file of 7 x 5 pixels with these tags."""
    tags = {256: 7, 257: 5, 258: bits, 259: 1, 262: photometric, 273: 0, 277: samples, 278: 5, 279: len(data)}
    tags[339] = sample_format
    counts = {258: samples, 339: samples}
    start = 8 + 2 + 12 * len(tags) + 4
    more = b""
    entries = b""
    tags[273] = start + 4 * samples  # the pixels, after both lists
    for tag, value in sorted(tags.items()):
        count = counts.get(tag, 1)
        if count > 2:
            entries += struct.pack("<HHII", tag, 3, count, start + len(more))
            more += struct.pack("<H", value) * count
        else:
            entries += struct.pack("<HHII" if count == 1 else "<HHIHH", tag, 3, count, *[value] * count)
    data = more.ljust(4 * samples, b"\0") + data
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + b"\0" * 4 + data)
    return path


def packed(rows, bits):
    """Rows of values of so many bits as TIFF files have them: without gaps, each row padded to whole bytes."""
    return b"".join(
        np.packbits(np.unpackbits(row.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 16 - bits :]).tobytes()
        for row in rows
    )


TWELVE = (GREY.astype(np.uint16) << 4) + 5

ZOO = {
    "grey12.tiff": (lambda p: tiff(p, packed(TWELVE, 12), bits=12), grey_rgb(GREY)),
    "grey16 that counts from white.tiff": (
        lambda p: tiff(p, (65535 - WIDE).astype("<u2").tobytes(), bits=16, photometric=0),
        grey_rgb(GREY),
    ),
    "grey8 that counts from white.tiff": (
        lambda p: tiff(p, (255 - GREY).tobytes(), bits=8, photometric=0),
        grey_rgb(GREY),
    ),
    "grey4.tiff": (
        lambda p: tiff(p, packed(GREY // 16, 4), bits=4),
        grey_rgb(GREY // 16 * 17),
    ),
    "one bit that counts from white.tiff": (
        lambda p: tiff(p, packed(GREY < 128, 1), bits=1, photometric=0),
        grey_rgb(np.where(GREY > 127, 255, 0).astype(np.uint8)),
    ),
    "rgb16.tiff": (
        lambda p: tiff(p, ((PIXELS.astype("<u2") << 8) + 9).tobytes(), bits=16, photometric=2, samples=3),
        PIXELS,
    ),
    "rgb.png": (lambda p: save(p, Image.fromarray(PIXELS)), PIXELS),
    "rgb.bmp": (lambda p: save(p, Image.fromarray(PIXELS)), PIXELS),
    "rgb.ppm": (lambda p: save(p, Image.fromarray(PIXELS)), PIXELS),
    "rgb.tiff": (lambda p: save(p, Image.fromarray(PIXELS)), PIXELS),
    "rgb.webp": (lambda p: save(p, Image.fromarray(PIXELS), lossless=True), PIXELS),
    "png called jpg.jpg": (lambda p: save(p, Image.fromarray(PIXELS), format="PNG"), PIXELS),
    "optimised.png": (lambda p: save(p, Image.fromarray(PIXELS), optimize=True), PIXELS),
    "grey.png": (lambda p: save(p, Image.fromarray(GREY)), grey_rgb(GREY)),
    "grey.bmp": (lambda p: save(p, Image.fromarray(GREY)), grey_rgb(GREY)),
    "grey.pgm": (lambda p: save(p, Image.fromarray(GREY)), grey_rgb(GREY)),
    "grey with a transparent level.png": (
        lambda p: save(p, Image.fromarray(GREY), transparency=int(GREY[0, 0])),
        grey_rgb(GREY),
    ),
    "rgb with a transparent colour.png": (
        lambda p: save(p, Image.fromarray(PIXELS), transparency=tuple(PIXELS[0, 0].tolist())),
        PIXELS,
    ),
    "one bit.png": (
        lambda p: save(p, Image.fromarray(GREY > 127)),
        grey_rgb(np.where(GREY > 127, 255, 0).astype(np.uint8)),
    ),
    "one bit.bmp": (
        lambda p: save(p, Image.fromarray(GREY > 127)),
        grey_rgb(np.where(GREY > 127, 255, 0).astype(np.uint8)),
    ),
    "grey16.png": (grey16, grey_rgb(GREY)),
    "grey16.tiff": (grey16, grey_rgb(GREY)),
    "grey16.pgm": (lambda p: (p.write_bytes(b"P5 7 5 65535\n" + WIDE.astype(">u2").tobytes()), p)[1], grey_rgb(GREY)),
    "palette.png": (lambda p: save(p, palette()), COLOURS[GREY % 4]),
    "palette.bmp": (lambda p: save(p, palette()), COLOURS[GREY % 4]),
    "palette.gif": (lambda p: save(p, palette()), COLOURS[GREY % 4]),
    "palette with an alpha table.png": (
        lambda p: save(p, palette(), transparency=bytes([0, 9, 255, 3])),
        COLOURS[GREY % 4],
    ),
    "palette with a transparent index.png": (lambda p: save(p, palette(), transparency=1), COLOURS[GREY % 4]),
    "palette with a transparent index.gif": (lambda p: save(p, palette(), transparency=1), COLOURS[GREY % 4]),
    "rgba.png": (lambda p: save(p, Image.fromarray(ALPHA)), PIXELS),
    "rgba.tiff": (lambda p: save(p, Image.fromarray(ALPHA)), PIXELS),
    "rgba.webp": (lambda p: save(p, Image.fromarray(ALPHA), lossless=True, exact=True), PIXELS),
    "grey with alpha.png": (
        lambda p: save(p, Image.fromarray(np.stack([GREY, GREY // 3], axis=2))),
        grey_rgb(GREY),
    ),
    "animated.gif": (
        lambda p: save(p, palette(), save_all=True, append_images=[Image.new("P", (7, 5), 1)] * 3),
        COLOURS[GREY % 4],
    ),
    "animated.webp": (
        lambda p: save(
            p, Image.fromarray(PIXELS), save_all=True, append_images=[Image.new("RGB", (7, 5))], lossless=True
        ),
        PIXELS,
    ),
    "animated.png": (
        lambda p: save(p, Image.fromarray(PIXELS), save_all=True, append_images=[Image.new("RGB", (7, 5))]),
        PIXELS,
    ),
    "two pages.tiff": (
        lambda p: save(p, Image.fromarray(PIXELS), save_all=True, append_images=[Image.new("RGB", (9, 9))]),
        PIXELS,
    ),
    "1x1.png": (lambda p: save(p, Image.fromarray(PIXELS[:1, :1])), PIXELS[:1, :1]),
    "1x5000.png": (
        lambda p: save(p, Image.fromarray(np.tile(PIXELS[:1, :1], (1, 5000, 1)))),
        np.tile(PIXELS[:1, :1], (1, 5000, 1)),
    ),
    "5000x1.png": (
        lambda p: save(p, Image.fromarray(np.tile(PIXELS[:1, :1], (5000, 1, 1)))),
        np.tile(PIXELS[:1, :1], (5000, 1, 1)),
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_pixels_follow_the_stated_rule(name, tmp_path):
    make, expected = ZOO[name]
    path = make(tmp_path / name)
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.permute(1, 2, 0).is_contiguous()
    assert torch.equal(image, chw(expected))
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_what_pillow_decodes(mode, tmp_path):
    path = save(tmp_path / "x.jpg", Image.fromarray(PIXELS).convert(mode), quality=95)
    with Image.open(path) as image:
        assert torch.equal(read_image(path), chw(np.asarray(image.convert("RGB"))))


UNTURNED = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
"""The orientation that undoes each."""


@pytest.mark.parametrize("orientation", TURNED)
def test_boxes_drawn_on_the_turned_image_stay_on_their_object(orientation, tmp_path, made):
    shown = np.zeros((20, 30, 3), dtype=np.uint8)
    shown[4:9, 6:18] = 255
    turns = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: a[::-1, ::-1],
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
    }
    turns |= {6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90}
    stored = np.ascontiguousarray(turns[UNTURNED[orientation]](shown))
    assert np.array_equal(turns[orientation](stored), shown)
    made.yolo(tmp_path)
    save(tmp_path / "images/train/a.png", Image.fromarray(stored), exif=exif(orientation))
    (tmp_path / "labels/train/a.txt").write_text(made.yolo_line("cat", 6, 4, 18, 9))
    annotations, _ = open_data(tmp_path).read("train")
    x1, y1, x2, y2 = annotations.boxes[0].round().astype(int)
    image = annotations.load_image(0)
    assert (image[:, y1:y2, x1:x2] == 255).all()
    assert int((image == 255).sum()) == 3 * 5 * 12


@pytest.mark.soak
def test_each_image_of_the_zoo_follows_its_rule(soak, figure, tmp_path, made):
    """All of them once more, so that their number is that of those which hold."""
    rows = [(test_pixels_follow_the_stated_rule, (name,)) for name in ZOO]
    rows += [(test_exif_orientation_is_applied_once, (o, s)) for o in TURNED for s in ("png", "webp", "tiff")]
    rows += [(test_jpeg_is_what_pillow_decodes, (mode,)) for mode in ("RGB", "L", "CMYK")]
    boxes = [(test_boxes_drawn_on_the_turned_image_stay_on_their_object, (o,)) for o in TURNED]
    assert len(rows) + len(boxes) >= 64
    for number, (check, arguments) in enumerate(rows + boxes if soak else ()):
        folder = tmp_path / str(number)
        folder.mkdir()
        check(*arguments, folder, *([made] if number >= len(rows) else []))
    figure("T18", f"{len(rows)} images pixel for pixel by the stated rules, boxes on their object at 8 orientations")


def test_white_of_16_bits_is_white_and_half_is_half(tmp_path):
    wide = np.array([[0, 255, 256, 32768, 65535]], dtype="<u2")
    path = save(tmp_path / "x.png", Image.frombytes("I;16", (5, 1), wide.tobytes()))
    assert read_image(path)[0, 0].tolist() == [0, 0, 1, 128, 255]


def test_exif_after_the_pixels_of_a_png_is_applied_without_decoding_them(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", Image.fromarray(PIXELS))
    before, end = path.read_bytes()[:-12], path.read_bytes()[-12:]
    path.write_bytes(before + png_chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0")) + end)
    assert torch.equal(read_image(path), chw(TURNED[6]))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert image_size(path) == PIXELS.shape[1::-1]


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_signed_pixels_are_refused(bits, tmp_path):
    path = tiff(tmp_path / "x.tiff", bytes(35 * bits // 8), bits=bits, sample_format=2)
    with pytest.raises(DataError, match="no range"):
        read_image(path)


def test_bits_scale_to_the_whole_range(tmp_path):
    values = np.zeros((5, 7), dtype=np.uint16)
    values[0, :4] = 0, 1024, 2048, 4095
    path = tiff(tmp_path / "x.tiff", packed(values, 12), bits=12)
    assert read_image(path)[0, 0, :4].tolist() == [0, 64, 128, 255]


def test_floating_point_pixels_are_refused(tmp_path):
    path = save(tmp_path / "x.tiff", Image.fromarray(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(DataError, match="no range"):
        read_image(path)


def test_a_folder_or_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png"):
        with pytest.raises(DataError, match="not a plain file"):
            read_image(path)


def test_pixels_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", Image.new("L", (300, 200)))
    with pytest.raises(DataError, match="200 x 300 px; allowed: at most 59,999"):
        read_image(path, max_pixels=59_999)
    assert read_image(path, max_pixels=60_000).shape == (3, 200, 300)
    monkeypatch.setenv("DRLOSS_MAX_PIXELS", "100")
    with pytest.raises(DataError, match="DRLOSS_MAX_PIXELS"):
        image_size(path)
    monkeypatch.setenv("DRLOSS_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="'many'"):
        image_size(path)


def test_the_limit_of_the_environment_goes_beyond_pillows(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", Image.new("L", (300, 200)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    monkeypatch.setenv("DRLOSS_MAX_PIXELS", "60000")
    assert read_image(path).shape == (3, 200, 300)


@pytest.mark.parametrize("sides", [(30_000, 30_000), (60_000, 60_000), (10_000, 5_001)])
def test_a_bomb_is_refused_from_its_header_without_a_warning(sides, tmp_path):
    header = struct.pack(">IIBBBBB", *sides, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    body = b"IDAT" + zlib.compress(b"\0" * 1000)
    data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DataError, match="allowed"):
        read_image(tmp_path / "x.png")  # and warnings are errors here


def test_a_size_that_differs_is_refused_with_both_sizes(tmp_path):
    path = save(tmp_path / "x.png", Image.fromarray(PIXELS), exif=exif(6))
    with pytest.raises(DataError, match=r"got 7 x 5 \(5 x 7 before EXIF rotation\); the data set lists 9 x 9"):
        read_image(path, height=9, width=9)
