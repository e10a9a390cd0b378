"""Reading annotation files: time and memory for a file of COCO's size, and whether all layouts are read as written.

    python -m benchmarks.formats [--images 118287] [--repeats 3] [--record]

- A file like COCO's ``instances_train2017.json`` is generated: 118,287 images, 860,001 boxes, 80 classes, polygons,
  crowd regions, all the keys that COCO has. There are no image files, because reading annotations opens none. Each
  repeat reads it with ``open_data`` in a new process. Its memory is the peak above what the process had before, all
  imports made.
- Each of :data:`benchmarks.layouts.LAYOUTS` is written and read: ``ok``, or what differs.

``--record`` writes benchmarks/results/DATE-formats-cpu.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.layouts import LAYOUTS, Layout, Pictures, pictures
from benchmarks.measure import surroundings
from drloss.data.formats.opening import open_data
from drloss.errors import AbsentError, UserError

IMAGES, BOXES, CLASSES = 118_287, 860_001, 80
RESULTS = Path(__file__).parent / "results"
READ = """
import json, re, resource, sys, time
from pathlib import Path
from drloss.data.formats.opening import open_data

def megabytes(key):
    status = Path("/proc/self/status")  # not ru_maxrss, which also counts the process that started this one
    if status.exists():
        return int(re.search(key + r":\\s+(\\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 ** (2 if sys.platform == "darwin" else 1)

before, began, cpu = megabytes("VmRSS"), time.perf_counter(), time.process_time()
annotations, report = open_data(sys.argv[1]).read("train")
found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
arrays = [v.nbytes for v in vars(annotations).values() if hasattr(v, "nbytes")]
found |= {"megabytes": megabytes("VmHWM") - before, "arrays_megabytes": sum(arrays) / 1024**2}
found |= {"images": report.images_kept, "boxes": report.boxes_kept, "problems": len(report.problems)}
print(json.dumps(found))
"""


def write_coco(folder: Path, images: int) -> Path:
    """A data set's folder with a file like COCO's, smaller in proportion if it has fewer images; returns the file."""
    path = folder / "annotations" / "instances_train2017.json"
    path.parent.mkdir(parents=True)
    rng = Random(0)
    ids = [4 * i + rng.randrange(1, 4) for i in range(images)]
    categories = [
        {"supercategory": f"kind {i // 8}", "id": i + i // 8 + 1, "name": f"class {i}"} for i in range(CLASSES)
    ]
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "like COCO 2017"},"licenses": [],"images": [')
        file.writelines(_joined(_images(ids, rng)))
        file.write('],"annotations": [')
        file.writelines(_joined(_annotations(ids, [c["id"] for c in categories], BOXES * images // IMAGES, rng)))
        file.write(f'],"categories": {json.dumps(categories)}}}')
    return path


def _joined(records: Iterable[str]) -> Iterator[str]:
    for i, record in enumerate(records):
        yield f",{record}" if i else record


def _images(ids: list[int], rng: Random) -> Iterator[str]:
    for own in ids:
        name, width = f"{own:012}.jpg", rng.choice((640, 500, 427))
        yield (
            f'{{"license": {rng.randrange(1, 9)},"file_name": "{name}",'
            f'"coco_url": "http://images.cocodataset.org/train2017/{name}","height": {1067 - width},"width": {width},'
            f'"date_captured": "2013-11-14 11:18:45",'
            f'"flickr_url": "http://farm9.staticflickr.com/8186/{rng.randrange(10**9, 10**10)}_4e622c8349_z.jpg",'
            f'"id": {own}}}'
        )


def _annotations(ids: list[int], categories: list[Any], count: int, rng: Random) -> Iterator[str]:
    polygons = [_polygon(rng, rng.randrange(6, 44)) for _ in range(2000)]
    runs = ",".join(str(rng.randrange(1, 900)) for _ in range(400))
    for own in range(1, count + 1):
        x, y, width, height = (round(rng.uniform(1, limit), 2) for limit in (200, 200, 220, 220))
        crowd = int(own % 86 == 0)
        shape = f'{{"counts": [{runs}],"size": [427,640]}}' if crowd else f"[[{rng.choice(polygons)}]]"
        yield (
            f'{{"segmentation": {shape},"area": {width * height * 0.6!r},"iscrowd": {crowd},'
            f'"image_id": {rng.choice(ids)},"bbox": [{x},{y},{width},{height}],'
            f'"category_id": {rng.choice(categories)},"id": {own * 2}}}'
        )


def _polygon(rng: Random, points: int) -> str:
    return ",".join(f"{round(rng.uniform(0, 427), 2)}" for _ in range(2 * points))


def reading(folder: Path, repeats: int) -> list[dict[str, float]]:
    """What each process found that read the data set."""
    command = [sys.executable, "-c", READ, str(folder)]
    return [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(repeats)]


def difference(layout: Layout, made: Pictures, folder: Path) -> str:
    """``"ok"``, or how a layout that was written to the folder differs from what is read."""
    try:
        source = open_data(layout.write(folder, made))
        read = []
        for split in source.splits:
            with suppress(AbsentError):  # Roboflow names a split that it does not write
                read.append(source.read(split)[0])
    except UserError as error:
        return str(error).splitlines()[0].replace(f"{folder.parent}/", "")
    wanted = {}
    for picture in (p for own in layout.as_written(made).values() for p in own if p.boxes or layout.keeps_empty):
        wanted[picture.name] = sorted(
            (n if layout.knows_names else "", *map(float, xyxy)) for n, *xyxy in picture.boxes
        )
    found: dict[str, list[tuple[Any, ...]]] = {}
    for one in read:
        for i in range(len(one)):
            own = one.boxes_of(i)
            names = [one.class_names[k - 1] if layout.knows_names else "" for k in one.labels[own]]
            boxes = one.boxes[own].round(3).tolist()
            found[Path(one.image_name(i)).name] = sorted((n, *b) for n, b in zip(names, boxes, strict=True))
    if found.keys() != wanted.keys():
        return f"{len(found.keys() ^ wanted.keys())} images of {len(wanted)} are missing or too many"
    differ = [name for name, boxes in wanted.items() if not _near(boxes, found[name])]
    return f"boxes of {', '.join(differ[:3])} differ ({len(differ)} of {len(wanted)} images)" if differ else "ok"


def _near(wanted: list[tuple[Any, ...]], found: list[tuple[Any, ...]]) -> bool:
    """Whether the boxes are the same to a hundredth of a pixel: files have shares with six digits."""
    pairs = list(zip(wanted, found, strict=False))
    same = all(a[0] == b[0] and max(abs(x - y) for x, y in zip(a[1:], b[1:], strict=True)) < 0.01 for a, b in pairs)
    return same and len(wanted) == len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    load = {"load": f"{os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"} if hasattr(os, "getloadavg") else {}
    where = surroundings("cpu") | load | {package: version(package) for package in ("numpy", "msgspec")}
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    with tempfile.TemporaryDirectory() as folder:
        size = write_coco(Path(folder) / "coco", options.images).stat().st_size
        rounds = reading(Path(folder) / "coco", options.repeats)
        made = pictures()
        layouts = {name: difference(layout, made, Path(folder) / name) for name, layout in LAYOUTS.items()}
    median = {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
    print(f"COCO: {median['images']:,} images and {median['boxes']:,} boxes in {size / 1e6:,.0f} MB, read in")
    for r in rounds:
        print(f"  {r['seconds']:.1f} s ({r['cpu_seconds']:.1f} s of the CPU) with {r['megabytes']:.0f} MB of memory")
    for name, says in layouts.items():
        print(f"{name:<24}{says}")
    if options.record:
        date = datetime.now(UTC).date().isoformat()
        record = {"date": date, **where, "file_bytes": size, "median": median, "rounds": rounds, "layouts": layouts}
        path = RESULTS / f"{date}-formats-cpu.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
