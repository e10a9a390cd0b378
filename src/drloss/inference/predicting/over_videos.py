"""Going over videos, frame by frame."""

from itertools import islice
from pathlib import Path

from rich.progress import TaskID

from drloss.errors import DataError, printable
from drloss.inference.predicting.folder import PICTURES
from drloss.inference.predicting.formats import record_of, stem_of
from drloss.inference.predicting.job import Job
from drloss.inference.predicting.journal import Record
from drloss.inference.predicting.sources import Source
from drloss.inference.predicting.videos import Video, VideoFile, VideoFrame, open_video
from drloss.inference.views import see
from drloss.io.atomic import write_atomic
from drloss.structures import Detection


def over_video(job: Job, source: Source, stem: str) -> None:
    """Look at the frames of a video; name it if it cannot be read, or not to its end.

    The line of its last frame says so, and is added when the video with the boxes is there: without that line, a
    command that goes on begins the video anew.

    Raises:
        UserError: if the video with the boxes cannot be written.
    """
    held: list[Record] = []
    try:
        with open_video(source.path) as video:
            task = job.progress.add_task(source.path.name, total=video.length)

            def write(beside: Path | None) -> None:
                held.extend(_over_frames(job, video, source.name, stem, task, beside))

            if job.drawing.pictures:
                write_atomic(job.results.out / PICTURES / f"{stem}.mp4", write)
            else:
                write(None)
    except DataError as error:
        job.fail(source, str(error))
        return
    if video.problem:
        job.fail(source, f"{printable(str(source.path))}: {video.problem}")
    held[0]["last"] = True
    job.add(held)


def _over_frames(job: Job, video: Video, name: str, stem: str, task: TaskID, beside: Path | None) -> list[Record]:
    """Look at all frames, draw them into the file ``beside``, and add the lines of all but the last; return that.

    Raises:
        DataError: if there is no frame.
    """
    frames, held = video.frames(), list[Record]()
    file: VideoFile | None = None
    try:
        while batch := list(islice(frames, job.wanted.batch_size)):
            for frame, detection in zip(batch, _found(job, batch), strict=True):
                held.append(_record(job, name, stem, frame, detection))
                if beside is not None:
                    file = file or VideoFile(beside, video.rate)
                    file.add(job.drawing.draw(frame.pixels, detection), frame.time)
            job.add(held[:-1])
            held = held[-1:]
            job.progress.advance(task, len(batch))
        if not held:
            raise DataError(f"{printable(str(video.path))}: {video.problem or 'has no frames'}")
    finally:
        if file is not None:
            file.close()
    return held


def _found(job: Job, frames: list[VideoFrame]) -> list[Detection]:
    config, fixed = job.detector.description.detector, job.detector.fixed_size
    seen = [see(frame.pixels, config, fixed, job.tiling) for frame in frames]
    return [job.above(detection) for detection in job.detector.find_seen(seen, job.wanted.batch_size)]


def _record(job: Job, name: str, stem: str, frame: VideoFrame, detection: Detection) -> Record:
    """The line of a frame, which is counted; its objects are cut out, if that is wanted."""
    job.count(detection)
    job.frames += 1
    size = frame.pixels.shape[1], frame.pixels.shape[2]
    more = {"frame": frame.index, "time": round(frame.time, 4)}
    record = record_of(name, stem, size, detection, job.detector.description.class_names, **more)
    job.drawing.cut_out(frame.pixels, stem_of(record), detection)
    return record
