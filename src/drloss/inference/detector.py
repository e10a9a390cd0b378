"""A trained detector in a program: from a file to boxes in five lines."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from drloss.detector.detections import detect, from_whole_input
from drloss.detector.exported import DetectorFile
from drloss.detector.model import RetinaNet
from drloss.detector.onnx_file import SUFFIX, OnnxDetector
from drloss.distributed.ranks import Ranks, choose_device
from drloss.errors import UserError
from drloss.inference.images import Picture, as_pixels
from drloss.inference.results import Detections
from drloss.inference.views import OVERLAP, Seen, Tiling, checked_tiling, find_in, in_chunks, see
from drloss.structures import Detection, Frame
from drloss.training.trained import load_run

THRESHOLD = 0.5
"""Score from which a detection counts, where no evaluation has said a better one."""


class Detector:
    """A trained detector. Made by :meth:`load`.

    Attributes:
        description: what it is: classes, structure, loss, sizes.
        device: where it computes.
        threshold: lowest score that it returns. :meth:`load` starts it from the file's, which ``drloss eval`` writes
            there; you may set it.
    """

    def __init__(
        self, network: RetinaNet | OnnxDetector, description: DetectorFile, device: torch.device, threshold: float
    ) -> None:
        self._network = network
        self.description = description
        self.device = device
        self.threshold = threshold

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, device: str | None = None, threshold: float | None = None
    ) -> "Detector":
        """The detector of a run folder, or of an exported ``.safetensors`` or ``.onnx`` file.

        Args:
            path: the folder or file.
            device: cpu, cuda or cuda:N; by default cuda where there is one.
            threshold: lowest score that it returns; by default the file's, or 0.5 if it says none.
        Raises:
            UserError: if it is missing, damaged or not a detector of drloss, or the threshold is not in 0..1.
        """
        file, chosen = Path(path), choose_device(device)
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"threshold must lie in 0..1, got {threshold}")
        network: RetinaNet | OnnxDetector
        if file.suffix == SUFFIX:
            network = OnnxDetector(file, chosen)
            description = network.description
            chosen = chosen if network.device_type == chosen.type else torch.device("cpu")
        else:
            network, description = load_run(file)
            network.to(chosen)
        if threshold is None:
            threshold = THRESHOLD if description.threshold is None else description.threshold
        return cls(network, description, chosen, threshold)

    @classmethod
    def fit(
        cls,
        data: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        preset: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        val_fraction: float | None = None,
        skip_bad: bool = False,
        follow_links: bool = False,
        resume: bool = False,
        device: str | None = None,
        **settings: object,
    ) -> "Detector":
        """Train a detector, as ``drloss train`` does, and load it. Progress is printed.

        >>> detector = Detector.fit("photos", "runs/first", loss="dr+", max_iters=300)  # doctest: +SKIP

        Args:
            data: folder of a data set as a tool exported it, one of its annotation files, a ``.toml`` data file, or
                ``"shapes"``, which are generated.
            out: folder of the run. It must be new, unless ``resume``.
            preset: where the settings start from; by default ``"laptop"``, or ``"cpu"`` for generated images.
            train_split, val_split, val_fraction, skip_bad: see :class:`~drloss.inference.reading.DataChoice`.
            follow_links: whether links may lead out of the data set.
            resume: go on from the newest checkpoint in ``out``, if there is one; a run that has ended is loaded.
            device: cpu, cuda or cuda:N; by default cuda where there is one.
            settings: those of ``drloss train --help``, with ``_`` in place of ``-``, as numbers, texts and tuples.
        Raises:
            UserError: if the data, a setting or the folder cannot be used.
            KeyboardInterrupt: if it is interrupted, after a checkpoint.
        """
        from rich.console import Console

        from drloss.data.files.paths import following_links
        from drloss.inference.fitting import fit_data
        from drloss.inference.reading import DataChoice
        from drloss.training.config import override
        from drloss.training.fit import Stopped
        from drloss.training.presets import default_preset, preset_of

        name = str(data)
        choice = DataChoice(name, train_split, val_split, val_fraction, skip_bad)
        config = override(preset_of(preset or default_preset(name)), settings)
        ranks = Ranks(0, 1, choose_device(device))
        with following_links(follow_links):
            try:
                fit_data(choice, config, Path(out), ranks, resume=resume, console=Console(highlight=False))
            except Stopped as stopped:
                raise KeyboardInterrupt(str(stopped)) from None
        return cls.load(out, device=device)

    def __repr__(self) -> str:
        about = self.description
        classes = f"{len(self.class_names)} classes"
        return f"<Detector: {about.detector.backbone}, {classes}, threshold {self.threshold:.3g}, on {self.device}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 1..K."""
        return self.description.class_names

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of the only input that it takes; None if it takes any size."""
        return self._network.size if isinstance(self._network, OnnxDetector) else None

    @property
    def digest(self) -> str:
        """SHA-256 of what decides what it finds: the weights, the classes and the settings, not the threshold."""
        if isinstance(self._network, OnnxDetector):
            return self._network.digest
        about = asdict(self.description.detector), self.class_names
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self._network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @overload
    def __call__(
        self, images: Picture, *, threshold: float | None = ..., tile: int | None = ..., overlap: float = ...
    ) -> Detections: ...
    @overload
    def __call__(
        self,
        images: list[Picture],
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
        tile: int | None = ...,
        overlap: float = ...,
    ) -> list[Detections]: ...
    def __call__(
        self,
        images: Picture | list[Picture],
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        tile: int | None = None,
        overlap: float = OVERLAP,
    ) -> Detections | list[Detections]:
        """Detect the objects of one image, or of several.

        Args:
            images: a path, a Pillow image, an array or a tensor (:data:`~drloss.inference.images.Picture`), or a list
                of them.
            threshold: lowest score, in place of the detector's.
            batch_size: most images that go through the network at once; only images of one padded size go together.
            tile: side in pixels of tiles, in which a larger image is looked at besides the whole of it, at its own
                resolution: for small objects in large images. Their number is not limited then.
            overlap: least share of a tile's side that it has in common with the next one.
        Returns:
            The detections of the image, or a list of those of each.
        Raises:
            UserError: if an image cannot be read, or is none, or a number is out of range.
        """
        tiling = checked_tiling(tile, overlap, self.fixed_size)
        if batch_size < 1:
            raise UserError(f"batch_size must be positive, got {batch_size}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"threshold must lie in 0..1, got {threshold}")
        if not isinstance(images, list):
            return self([images], threshold=threshold, batch_size=batch_size, tile=tile, overlap=overlap)[0]
        least = self.threshold if threshold is None else threshold
        about = self.description
        found: list[Detections] = []
        for chunk in in_chunks((self._see(image, tiling) for image in images), batch_size):
            for seen, one in zip(chunk, self.find_seen(chunk, batch_size), strict=True):
                detections = Detections(
                    boxes=one["boxes"],
                    scores=one["scores"],
                    labels=one["labels"],
                    size=seen.size,
                    class_names=about.class_names,
                    category_ids=about.category_ids,
                    source=images[len(found)],
                )
                found.append(detections.above(least))
        return found

    def _see(self, image: Picture, tiling: Tiling | None) -> Seen:
        pixels = Path(image) if isinstance(image, str | os.PathLike) else as_pixels(image)
        return see(pixels, self.description.detector, self.fixed_size, tiling)

    def find_seen(self, images: Sequence[Seen], batch_size: int) -> list[Detection]:
        """Everything above the detector's own ``score_threshold`` in images, or in their tiles, on the CPU.

        Args:
            images: as :func:`~drloss.inference.views.see` makes them.
            batch_size: most images, or tiles, that go through the network at once.
        """
        iou = self.description.detector.nms_threshold
        return find_in(images, self.find, batch_size=batch_size, iou=iou)

    @torch.no_grad()
    def find(self, images: Tensor, frames: Sequence[Frame]) -> list[Detection]:
        """Everything above the detector's own ``score_threshold`` in prepared images, on the CPU.

        Args:
            images: (N, 3, H, W) uint8, as :func:`~drloss.inference.images.prepared` makes them, of one padded size.
            frames: sizes of the N images.
        """
        if isinstance(self._network, OnnxDetector):
            config = self.description.detector
            return from_whole_input(self._network(images), frames, config, suppressed=self._network.suppresses)
        outputs = self._network(images.to(self.device, non_blocking=True))
        found = detect(outputs, frames, self._network.config)
        return [{name: tensor.cpu() for name, tensor in detection.items()} for detection in found]
