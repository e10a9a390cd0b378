"""Decoded images that are kept: the very pixels or nothing, shared by processes, bounded, and never stale."""

import os
import shutil
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image

from drloss.data.batches import TrainingImages, image_cache
from drloss.data.formats.opening import open_data
from drloss.data.formats.shapes import open_shapes
from drloss.data.formats.writing import write_coco
from drloss.data.images import cache as caches
from drloss.data.images.cache import DiskCache, MemoryCache, cache_folder, load_cached
from drloss.data.images.decoding import jpeg_divisor, read_image
from drloss.data.order import Key
from drloss.data.transforms import Augmentation
from drloss.errors import DataError

SIZE = (20, 30)


@pytest.fixture
def files(tmp_path):
    """Three pictures, the first two with other pixels and as many bytes."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.bmp"
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def make(kind, tmp_path, count=3, most=None):
    if kind == "ram":
        return MemoryCache([SIZE] * count, most)
    return DiskCache(tmp_path / "cache", [SIZE] * count, [SIZE] * count)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_what_was_put_is_what_is_got(kind, files, tmp_path):
    cache = make(kind, tmp_path)
    for index, file in enumerate(files):
        assert cache.get(index, file) is None
        image = read_image(file)
        cache.put(index, file, image)
        assert torch.equal(cache.get(index, file), image)
        cache.get(index, file).zero_()  # a copy
        assert torch.equal(cache.get(index, file), image)
    loaded = [load_cached(cache, i, f, lambda: pytest.fail("it is there")) for i, f in enumerate(files)]
    assert all(torch.equal(image, read_image(file)) for image, file in zip(loaded, files, strict=True))


def put_and_get(cache, index, file, queue):
    found = cache.get(0, file)
    cache.put(index, file, torch.full((3, *SIZE), 7, dtype=torch.uint8))
    queue.put(None if found is None else found.tolist())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.filterwarnings("ignore")  # of a fork beside threads
def test_other_processes_share_it(kind, method, files, tmp_path):
    cache, context = make(kind, tmp_path), get_context(method)
    image = read_image(files[0])
    cache.put(0, files[0], image)
    queue = context.Queue()
    process = context.Process(target=put_and_get, args=(cache, 1, files[0], queue))
    process.start()
    shared = kind == "disk" or method == "fork"  # a process that is started anew has memory of its own
    assert queue.get(timeout=60) == (image.tolist() if shared else None)
    process.join()
    assert (cache.get(1, files[0]) is not None) == shared


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_damaged_entry_is_no_entry(kind, files, tmp_path):
    cache = make(kind, tmp_path)
    cache.put(0, files[0], read_image(files[0]))
    if kind == "ram":
        cache._pixels[5] ^= 1
        assert cache.get(0, files[0]) is None
        return
    (entry,) = (f for f in (tmp_path / "cache").rglob("*") if f.is_file())
    whole = entry.read_bytes()
    for damaged in (b"", whole[:10], whole[:-1], whole + b"0", whole[:40] + b"?" + whole[41:], bytes(len(whole))):
        entry.write_bytes(damaged)
        assert cache.get(0, files[0]) is None
    entry.write_bytes(whole)
    assert cache.get(0, files[0]) is not None


def test_the_disk_cache_knows_a_changed_image_and_another_of_the_same_name(files, tmp_path):
    cache = make("disk", tmp_path)
    cache.put(0, files[0], read_image(files[0]))
    stat = files[0].stat()
    shutil.copy(files[1], files[0])
    assert files[0].stat().st_size == stat.st_size
    assert cache.get(0, files[0]) is None
    cache.put(0, files[0], read_image(files[0]))
    elsewhere = tmp_path / "elsewhere" / files[0].name
    elsewhere.parent.mkdir()
    shutil.copy2(files[2], elsewhere)
    os.utime(elsewhere, ns=(files[0].stat().st_mtime_ns,) * 2)
    assert cache.get(0, elsewhere) is None
    other_size = DiskCache(tmp_path / "cache", [SIZE] * 3, [(10, 15)] * 3)
    assert other_size.get(0, files[0]) is None


def test_the_memory_is_bounded(files, tmp_path):
    image = read_image(files[0])
    cache = make("ram", tmp_path, most=2 * image.numel() + 1)
    for index in range(3):
        cache.put(index, files[0], image)
    assert [cache.get(i, files[0]) is None for i in range(3)] == [False, False, True]
    assert cache.size == 2 * image.numel()
    empty = make("ram", tmp_path, most=0)
    empty.put(0, files[0], image)
    assert empty.get(0, files[0]) is None
    cache.put(0, files[0], image[:, :10])  # of another size than expected: not kept
    assert torch.equal(cache.get(0, files[0]), image)


def test_the_disk_is_bounded(files, tmp_path, monkeypatch):
    image = read_image(files[0])
    monkeypatch.setattr(caches, "MOST_DISK", 2 * image.numel() + 100)
    cache = make("disk", tmp_path)
    for index, file in enumerate(files):
        cache.put(index, file, image)
    assert [cache.get(i, f) is None for i, f in enumerate(files)] == [False, False, True]
    later = make("disk", tmp_path)
    later.put(2, files[2], image)
    assert later.get(2, files[2]) is None
    monkeypatch.setattr(caches, "MOST_DISK", 1 << 40)
    monkeypatch.setattr(caches, "_LEFT_FREE", 1 << 60)
    full = make("disk", tmp_path)
    full.put(2, files[2], image)
    assert full.get(2, files[2]) is None


def test_a_disk_that_cannot_be_written_costs_nothing(files, tmp_path):
    (tmp_path / "cache").write_text("a file, and no folder")
    cache = make("disk", tmp_path)
    image = load_cached(cache, 0, files[0], lambda: read_image(files[0]))
    assert torch.equal(image, read_image(files[0]))
    assert cache.get(0, files[0]) is None
    assert (tmp_path / "cache").read_text() == "a file, and no folder"


def test_a_missing_image_is_still_named(files, tmp_path):
    cache = make("disk", tmp_path)
    with pytest.raises(DataError, match="no such image file"):
        load_cached(cache, 0, tmp_path / "absent.png", lambda: read_image(tmp_path / "absent.png"))


def test_the_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "drloss" / "images"


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_training_images_are_the_same_with_and_without(kind, suffix, tmp_path):
    shapes = open_shapes("shapes:train=6,val=1,size=96").read("train")[0]
    write_coco(shapes, tmp_path / "data", "train")
    data = open_data(str(tmp_path / "data")).read("train")[0]
    if suffix == ".jpg":
        names = []
        for index in range(len(data)):
            path = data.image_root / data.image_name(index)
            Image.open(path).save(path.with_suffix(".jpg"), quality=95)
            names.append(data.image_name(index).removesuffix(".png") + ".jpg")
        data = replace(data, image_names=np.array([name.encode() for name in names]))
    augmentation = Augmentation((24, 40), 64, 0.5, (0.8, 1.2))
    cache = image_cache(kind, data, augmentation, tmp_path / "cache")
    kept, fresh = (TrainingImages(data, augmentation, 0, c) for c in (cache, None))
    for epoch in range(3):
        for index in range(len(data)):
            key = Key(epoch, index, (64, 64))
            (a, objects, *_), (b, others, *_) = kept[key], fresh[key]
            assert torch.equal(a, b)
            assert torch.equal(objects.boxes, others.boxes)
    found = cache.get(0, data.image_root / data.image_name(0))
    assert tuple(found.shape[1:]) == ((48, 48) if suffix == ".jpg" else (96, 96))
    assert image_cache("none", data, augmentation, tmp_path) is None
    assert (image_cache(kind, shapes, augmentation, tmp_path) is None) == (kind == "disk")


# ---------------------------------------------------------------------- smaller decoding


@pytest.mark.parametrize("size", [(240, 320), (241, 333), (97, 640)])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_a_jpeg_may_come_smaller_but_not_smaller_than_needed(size, orientation, divisor, tmp_path):
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = size if orientation == 1 else size[::-1]
    Image.fromarray(small).resize(stored[::-1], Image.Resampling.BICUBIC).save(
        tmp_path / "a.jpg", quality=95, exif=exif
    )
    whole = read_image(tmp_path / "a.jpg")
    least = (size[0] // divisor, size[1] // divisor)
    found = read_image(tmp_path / "a.jpg", height=size[0], width=size[1], needed=least)
    assert jpeg_divisor(size, least) == divisor
    assert tuple(found.shape[1:]) == (-(-size[0] // divisor), -(-size[1] // divisor))
    pooled = torch.nn.functional.interpolate(whole[None].float(), tuple(found.shape[1:]), mode="area")[0]
    assert (pooled - found.float()).abs().mean() < 5  # grey levels: libjpeg's own scaling is nearly a mean of pixels


def test_a_phones_image_of_several_pictures_may_come_smaller_too(tmp_path):
    pictures = [Image.new("RGB", (128, 96), colour) for colour in ("red", "blue")]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    found = read_image(tmp_path / "a.jpg", needed=(24, 32))
    assert found.shape == (3, 24, 32)
    assert found[0].float().mean() > 250


def test_memory_is_no_more_than_the_container_has(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("100000\n")
    (tmp_path / "memory.current").write_text("60000\n")
    assert caches.free_memory() == 40_000
    (tmp_path / "memory.max").write_text("max\n")
    assert caches.free_memory() > 1_000_000


def test_ranks_share_the_memory(monkeypatch):
    monkeypatch.setattr(caches, "free_memory", lambda: 8 * 4 * 3 * SIZE[0] * SIZE[1])
    assert MemoryCache([SIZE] * 20).kept == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert MemoryCache([SIZE] * 20).kept == 2


def test_smaller_images_of_other_formats_are_read_whole(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", needed=(8, 8)).shape == (3, 64, 64)


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_a_jpeg_that_is_cut_off_is_found_at_every_size(divisor, tmp_path):
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    cut = content[: len(content) // 2]
    (tmp_path / "b.jpg").write_bytes(cut + b"\xff\xd9")
    with pytest.raises(DataError, match="no data, and would be grey"):
        read_image(tmp_path / "b.jpg", needed=(256 // divisor, 256 // divisor))
    assert read_image(tmp_path / "a.jpg", needed=(256 // divisor,) * 2).shape[1] == 256 // divisor
