"""A detector in an ONNX file that drloss exported, run by onnxruntime: the extra ``onnx``.

The file is a graph of ONNX's own operators, and onnxruntime reads it; what its metadata say is not trusted.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drloss.detector.config import check_detector
from drloss.detector.detections import DROPPED, FoundBoxes
from drloss.detector.exported import DetectorFile, about_in, parse_description
from drloss.errors import UserError, first_line, shown

FORMAT = "drloss.onnx/1"
SUFFIX = ".onnx"
LARGEST_SIDE = 8192
"""Longest side of an input of fixed size, in pixels."""
_KINDS = {"images": "tensor(uint8)", "boxes": "tensor(float)", "scores": "tensor(float)", "labels": "tensor(int64)"}


def require_onnx(what: str, *packages: str) -> None:
    """Raise UserError unless these packages are installed, without importing them."""
    for package in packages:
        if not find_spec(package):
            raise UserError(f"{what}: {package} is missing: run pip install '.[onnx]' in the checkout of drloss")


class OnnxDetector:
    """A detector in an ONNX file.

    Attributes:
        description: what the detector is; its settings at test time can be read, but are part of the file.
        size: height and width of its input; None if they may be any multiples of 32.
        suppresses: whether NMS is part of it.

    Args:
        path: the file.
        device: a CUDA device is used if onnxruntime was built for it. CPU threads are as many as torch's.
    Raises:
        UserError: if the file is missing, nothing that onnxruntime can run, or not exported by drloss.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        require_onnx(str(path), "onnxruntime")
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what it raises is enough
        wanted = ["CUDAExecutionProvider"] if device is not None and device.type == "cuda" else []
        there = onnxruntime.get_available_providers()
        providers = [*(p for p in wanted if p in there), "CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its classes have no public name, and in any case the file is at fault
            raise UserError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot read it: {_words(error)}"
            ) from None
        self._path = path
        about = about_in(self._session.get_modelmeta().custom_metadata_map, path)
        if about.get("format") != FORMAT:
            raise UserError(f"{path}: not a detector exported by drloss (its ONNX metadata have no format {FORMAT})")
        self.description = _checked(parse_description(about, path), path)
        self.size, self.suppresses = _input_of(about, path)
        kinds = {value.name: value.type for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        if kinds != _KINDS:
            raise UserError(f"{path}: its graph takes and gives {shown(kinds)}, not what drloss exports")

    @property
    def device_type(self) -> str:
        """Where onnxruntime computes: ``"cuda"``, if that was asked for and it was built for it, or ``"cpu"``."""
        return "cuda" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def __call__(self, images: Tensor) -> FoundBoxes:
        """The boxes in a batch (N, 3, H, W) uint8, xyxy in its pixels, on the CPU.

        With NMS in the file they come best first; see :class:`~drloss.detector.deployed.Deployed`.
        """
        try:
            arrays = self._session.run(list(FoundBoxes._fields), {"images": images.cpu().numpy()})
        except Exception as error:  # as above
            raise UserError(f"{self._path}: onnxruntime cannot run it: {_words(error)}") from None
        boxes, scores, labels = (torch.from_numpy(array) for array in arrays)
        wanted = (len(images), *scores.shape[1:])
        known = len(self.description.class_names)
        if scores.ndim != 2 or boxes.shape != (*wanted, 4) or scores.shape != wanted or labels.shape != wanted:
            raise UserError(f"{self._path}: its outputs have the shapes {[tuple(a.shape) for a in arrays]}")
        labels = torch.where(scores > 0, labels, 1)
        if not (boxes.isfinite().all() and ((scores >= 0) & (scores <= 1) & (labels >= 1) & (labels <= known)).all()):
            raise UserError(f"{self._path}: gives boxes that are not finite, scores outside 0..1 or unknown labels")
        return FoundBoxes(boxes, torch.where(scores > 0, scores, DROPPED), labels)


def _checked(description: DetectorFile, path: Path) -> DetectorFile:
    """The description, if its settings are in range."""
    try:
        check_detector(description.detector)
    except UserError as error:
        raise UserError(f"{path}: its description of the detector cannot be used: {error}") from None
    return description


def _input_of(about: dict[str, Any], path: Path) -> tuple[tuple[int, int] | None, bool]:
    """Size of the input and whether NMS is part of the graph, from the metadata."""
    given, suppresses = about.get("input"), about.get("nms")
    size = given.get("size", 0) if isinstance(given, dict) else 0
    if size is not None and not (
        isinstance(size, list) and len(size) == 2 and all(type(s) is int and 0 < s <= LARGEST_SIDE for s in size)
    ):
        raise UserError(f"{path}: its description cannot be read: the size of its input is {shown(size)}")
    if not isinstance(suppresses, bool):
        raise UserError(f"{path}: its description cannot be read: nms is {shown(suppresses)}")
    return (None if size is None else (size[0], size[1])), suppresses


def _words(error: Exception) -> str:
    """onnxruntime's message without its own codes, in one line."""
    return first_line(error).rpartition(" : ")[2]
