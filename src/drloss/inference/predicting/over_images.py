"""Going over images: read in processes, looked at in batches, drawn in threads, and listed in their order."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from drloss.data.images.decoding import pillow_quieted
from drloss.inference.predicting.formats import record_of
from drloss.inference.predicting.job import Job
from drloss.inference.predicting.journal import Record
from drloss.inference.predicting.loading import Pictures, Read, load_pictures
from drloss.inference.predicting.sources import Source
from drloss.inference.views import in_chunks
from drloss.structures import Detection

WAITING = 4
"""Most batches of images whose pictures are still to be drawn."""


def over_images(job: Job, images: Sequence[Source], stems: dict[str, str]) -> None:
    """Look at images.

    Args:
        job: what to do with them.
        images: the images.
        stems: of their files, by name.
    """
    task = job.progress.add_task("images", total=len(images))
    detector = job.detector
    config, size = detector.description.detector, job.wanted.batch_size
    pictures = Pictures([image.path for image in images], config, detector.fixed_size, job.tiling)
    with load_pictures(pictures, job.wanted.workers) as loaded, _Drawn(job) as drawn:
        for chunk in in_chunks(loaded, size):
            seen = [read.seen for read in chunk if read.seen]
            found = [job.above(detection) for detection in detector.find_seen(seen, size)]
            _take(job, chunk, found, images, stems, drawn)
            job.progress.advance(task, len(chunk))


def _take(
    job: Job,
    chunk: Sequence[Read],
    found: Sequence[Detection],
    images: Sequence[Source],
    stems: dict[str, str],
    drawn: "_Drawn",
) -> None:
    """Draw and list what was found in those images of a chunk that could be read; name the others."""
    left = iter(found)
    for read in chunk:
        image = images[read.index]
        if read.seen is None:
            job.fail(image, read.problem)
            continue
        detection = next(left)
        job.count(detection)
        job.images += 1
        record = record_of(
            image.name, stems[image.name], read.seen.size, detection, job.detector.description.class_names
        )
        drawn.draw(image, record, detection)


class _Drawn:
    """Draws images in threads, and lists each once it and those before it are drawn. A context that ends with all."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._waiting: deque[tuple[Source, Record, Future[str]]] = deque()
        self._threads = ThreadPoolExecutor(max(1, job.wanted.workers))
        self._quiet = pillow_quieted()

    def draw(self, image: Source, record: Record, detection: Detection) -> None:
        """Have an image drawn and listed, soon."""
        future = self._threads.submit(self._job.drawing.save, image.path, record["stem"], detection)
        self._waiting.append((image, record, future))
        if len(self._waiting) % self._job.wanted.batch_size == 0:
            self._list(WAITING * self._job.wanted.batch_size)

    def _list(self, most: int) -> None:
        """List images in their order until no more than ``most`` are waiting."""
        ready: list[Record] = []
        try:
            while self._waiting and (len(self._waiting) > most or self._waiting[0][2].done()):
                image, record, future = self._waiting.popleft()
                if problem := future.result():
                    self._job.fail(image, problem)
                ready.append(record)
        finally:
            self._job.add(ready)

    def __enter__(self) -> "_Drawn":
        self._quiet.__enter__()  # before the threads start: warnings are not per thread
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._list(0)
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._quiet.__exit__(None, None, None)
