"""The detector as an ONNX graph, by torch's exporter. Needs onnx and onnxscript: the extra ``onnx``."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch.export import Dim

from drloss.detector.deployed import Deployed
from drloss.detector.folding import make_constant
from drloss.detector.model import RetinaNet
from drloss.errors import UserError

OPSET = 18
"""Version of ONNX's operators; runtimes of 2023 and later read it."""
INPUT = "images"
OUTPUTS = ("boxes", "scores", "labels")
_TRACED = (2, 288, 352)
"""Batch, height and width on which a graph of any size is traced: no side of a pyramid level is 1, which torch would
take for a constant."""
OLDEST_TORCH = (2, 9)
"""The oldest torch with which the export was tried and works; 2.6 fails."""


def _require_torch() -> None:
    major, minor = torch.__version__.split(".")[:2]
    if (int(major), int(minor)) < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        raise UserError(f"--format onnx: needs torch {wanted} or later, this is {torch.__version__}")


def onnx_bytes(
    model: RetinaNet, about: dict[str, Any], *, size: tuple[int, int] | None, suppress: bool, half: bool
) -> bytes:
    """An ONNX file of :class:`~drloss.detector.deployed.Deployed`, for batches of any number of images.

    Args:
        model: the detector, on the CPU. It is not changed.
        about: what the file's metadata say, under the key ``about``.
        size: height and width of the input, multiples of 32; None for any such.
        suppress: whether NMS is part of the graph.
        half: whether the weights and the convolutions are float16. The input is uint8, and boxes and scores float32,
            in any case.
    Raises:
        UserError: if torch is older than :data:`OLDEST_TORCH`.
    """
    _require_torch()
    own = deepcopy(model).requires_grad_(False)
    make_constant(own)
    deployed = Deployed(own.half() if half else own, suppress=suppress)
    images, height, width = _TRACED if size is None else (_TRACED[0], *size)
    example = torch.zeros(images, 3, height, width, dtype=torch.uint8)
    free: dict[int, Any] = {0: Dim("batch")}
    if size is None:
        free |= {2: 32 * Dim("height_32"), 3: 32 * Dim("width_32")}
    with _quiet(), torch.no_grad():
        traced = torch.export.export(deployed, (example,), dynamic_shapes=(free,), strict=False)
        program = torch.onnx.export(
            traced,
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=OUTPUTS,
            opset_version=OPSET,
            custom_translation_table={torch.ops.drloss.kept_by_nms.default: _kept_by_nms},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["about"] = json.dumps(about)
    written: bytes = program.model_proto.SerializeToString()
    return written


def _kept_by_nms(boxes: Any, scores: Any, threshold: float, most: int) -> Any:
    """:func:`~drloss.detector.deployed.kept_by_nms` in ONNX's operators, the images being ONNX's batch."""
    from onnxscript import opset18

    op: Any = opset18

    chosen = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[most]),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[0.0]),
    )  # (number of boxes kept, 3): image, class, box
    image_and_box = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    count = op.Slice(op.Shape(chosen), op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    ones = op.Expand(op.Constant(value_floats=[1.0]), count)
    return op.Cast(op.ScatterND(op.Mul(scores, op.Constant(value_float=0.0)), image_and_box, ones), to=_BOOL)


_BOOL = 9
"""ONNX's number of the type bool."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and remarks of torch's exporter, which say nothing to whoever asks for a file."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
