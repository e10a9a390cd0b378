"""Videos: their frames as tensors, and frames as a video. PyAV does it, the extra ``video``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from drloss.data.files.paths import suffix_of
from drloss.data.images.decoding import pixel_limit
from drloss.errors import DataError, UserError, first_line, printable
from drloss.io.atomic import unwritable

SUFFIXES = frozenset(
    f".{suffix}" for suffix in ("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "flv", "ts", "3gp")
)
CODECS = ("libx264", "mpeg4")
"""Encoders for videos, the better first; not every build of FFmpeg has it."""
SURE = 2.0
"""Seconds that must be missing at the end of a video that does not say how many frames it has."""
QUALITY = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"qscale": "3"}}


def is_video(name: str) -> bool:
    """Whether a file is read as a video: its suffix says so."""
    return suffix_of(name) in SUFFIXES


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video.

    Attributes:
        index: counted from 0.
        time: in seconds from the beginning.
        pixels: uint8 (3, H, W), RGB, turned as the video says.
    """

    index: int
    time: float
    pixels: Tensor


class Video:
    """A video that is read from its beginning. Made by :func:`open_video`.

    Attributes:
        length: number of frames that it says it has; None if it does not say.
        rate: frames a second.
        problem: why it could not be read to its end; empty if it was.
    """

    def __init__(self, path: Path, container: Any, stream: Any) -> None:
        self.path = path
        self._container, self._stream = container, stream
        self.length: int | None = stream.frames or None
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.problem = ""

    def frames(self) -> Iterator[VideoFrame]:
        """The frames, as far as they can be read."""
        import av

        index, first, time = 0, None, 0.0
        try:
            for frame in self._container.decode(self._stream):
                at = float(frame.time) if frame.time is not None else index / float(self.rate)
                first = at if first is None else first
                time = at - first
                yield VideoFrame(index, time, _pixels(frame))
                index += 1
        except (av.error.FFmpegError, ValueError) as error:
            self.problem = f"ends early, after {index} frames: {first_line(error)}"
            return
        if self.length is not None and index < self.length:
            self.problem = f"ends early, after {index} of {self.length} frames"
        elif index and self._duration - time > SURE:
            self.problem = f"ends early, after {time:.1f} of {self._duration:.1f} s"

    @property
    def _duration(self) -> float:
        """Length in seconds that the file says it has; 0 if it does not say, or may mean the sound's."""
        alone = len(self._container.streams) == 1
        return self._container.duration / 1e6 if alone and self._container.duration else 0.0


def require_videos(first: str) -> None:
    """Raise UserError unless videos can be read, without importing what reads them."""
    if not find_spec("av"):
        raise UserError(f"{first}: PyAV is missing: run pip install '.[video]' in the checkout of drloss")


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """A video file.

    Raises:
        DataError: if it cannot be opened, or there is no video in it.
    """
    import av

    try:
        # A file may be a list of other places, whatever its suffix: none of them is opened.
        container = av.open(str(path), metadata_errors="replace", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{printable(str(path))}: cannot be read as a video: {first_line(error)}") from None
    with container:
        if not container.streams.video:
            raise DataError(f"{printable(str(path))}: there is no video in it")
        stream = container.streams.video[0]
        if stream.width * stream.height > (limit := pixel_limit()):
            size = f"{stream.height} x {stream.width}"
            raise DataError(f"{printable(str(path))}: size, got {size} px; allowed: at most {limit:,} pixels")
        stream.thread_type = "AUTO"
        yield Video(path, container, stream)


def _pixels(frame: Any) -> Tensor:
    """The pixels of a frame uint8 (3, H, W), turned as its metadata say."""
    array = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if turns:
        array = np.ascontiguousarray(np.rot90(array, turns))
    return torch.from_numpy(array).permute(2, 0, 1)


class VideoFile:
    """A video that is written frame by frame; a context that ends it.

    Args:
        path: file to write, MP4 whatever its suffix.
        rate: frames a second.
    Raises:
        UserError: if it cannot be written.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        import av

        self.path = path
        self._rate = rate.limit_denominator(1 << 16)
        self._stream: Any = None
        self._last = -1
        with _writing(path):
            self._container = av.open(str(path), "w", format="mp4")

    def add(self, picture: Image.Image, time: float) -> None:
        """Add a picture, which is shown from ``time`` on, in seconds; all have the size of the first."""
        import av

        with _writing(self.path):
            if self._stream is None:
                self._stream = self._new_stream(picture)
            size = self._stream.width, self._stream.height
            array = np.asarray(picture.crop((0, 0, *size)))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            self._last = max(self._last + 1, round(time / float(_TICK)))
            frame.pts, frame.time_base = self._last, _TICK
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left, and close the file."""
        with _writing(self.path):
            if self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()

    def _new_stream(self, picture: Image.Image) -> Any:
        import av

        codec = next(name for name in CODECS if name in av.codecs_available)
        stream: Any = self._container.add_stream(codec, rate=self._rate, options=QUALITY[codec])
        stream.width, stream.height = (max(2, side // 2 * 2) for side in picture.size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _TICK
        return stream


_TICK = Fraction(1, 1000)
"""Unit of the times of frames that are written, in seconds."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Errors of PyAV as those of the file."""
    import av

    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from None
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: cannot be written: {first_line(error)}") from None
