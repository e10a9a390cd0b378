"""A trained detector in a program: from a file to boxes in five lines."""

import os
from collections.abc import Iterator, Sequence
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
from drloss.inference.images import Picture, as_pixels, prepared
from drloss.inference.results import Detections
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

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 1..K."""
        return self.description.class_names

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of the only input that it takes; None if it takes any size."""
        return self._network.size if isinstance(self._network, OnnxDetector) else None

    @overload
    def __call__(self, images: Picture, *, threshold: float | None = ...) -> Detections: ...
    @overload
    def __call__(
        self, images: list[Picture], *, threshold: float | None = ..., batch_size: int = ...
    ) -> list[Detections]: ...
    def __call__(
        self, images: Picture | list[Picture], *, threshold: float | None = None, batch_size: int = 8
    ) -> Detections | list[Detections]:
        """Detect the objects of one image, or of several.

        Args:
            images: a path, a Pillow image, an array or a tensor (:data:`~drloss.inference.images.Picture`), or a list
                of them.
            threshold: lowest score, in place of the detector's.
            batch_size: most images that go through the network at once; only images of one padded size go together.
        Returns:
            The detections of the image, or a list of those of each.
        Raises:
            UserError: if an image cannot be read, or is none.
        """
        if not isinstance(images, list):
            return self([images], threshold=threshold)[0]
        least = self.threshold if threshold is None else threshold
        about = self.description
        found: dict[int, Detections] = {}
        for batch in self._batches(images, batch_size):
            numbers, tensors, frames = zip(*batch, strict=True)
            for number, frame, one in zip(numbers, frames, self.find(torch.stack(tensors), frames), strict=True):
                detections = Detections(
                    boxes=one["boxes"],
                    scores=one["scores"],
                    labels=one["labels"],
                    size=frame.original,
                    class_names=about.class_names,
                    category_ids=about.category_ids,
                    source=images[number],
                )
                found[number] = detections.above(least)
        return [found[number] for number in range(len(images))]

    def _batches(self, images: Sequence[Picture], batch_size: int) -> Iterator[list[tuple[int, Tensor, Frame]]]:
        """The images, prepared, in batches of one padded size; each with its position."""
        waiting: dict[torch.Size, list[tuple[int, Tensor, Frame]]] = {}
        for number, image in enumerate(images):
            path = Path(image) if isinstance(image, str | os.PathLike) else None
            tensor, frame = prepared(as_pixels(image), self.description.detector, self.fixed_size, path)
            batch = waiting.setdefault(tensor.shape, [])
            batch.append((number, tensor, frame))
            if len(batch) == batch_size:
                yield waiting.pop(tensor.shape)
        yield from waiting.values()

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
