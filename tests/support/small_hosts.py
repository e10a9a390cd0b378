"""Small detectors of the other hosts with random weights, and batches; a test skips where its host is absent."""

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

CLASSES = 3
SIZE = 64
BOXES = [[(8, 8, 40, 40)], [(16, 4, 60, 36), (0, 30, 30, 62)], []]
"""Of three images, the last without objects: x1, y1, x2, y2."""
LABELS = [[2], [0, 1], []]


@dataclass(frozen=True)
class Host:
    """A kind of detector.

    Attributes:
        make: a new one with random weights.
        batch: what ``step`` takes, the images first.
        step: (model, batch) to a dict of losses.
        cls: part of the key of the classification losses.
        layers: the classifier's last layers.
        sets: calls of the loss in a step.
        part: what is handed to ``adapt``.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], Any]
    step: Callable[[nn.Module, Any], dict[str, torch.Tensor]]
    cls: str
    layers: Callable[[nn.Module], list[Any]]
    sets: int = 1
    part: Callable[[nn.Module], nn.Module] = lambda model: model


def needs(name: str, other: str = "") -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{other or name} is not installed")


def images() -> torch.Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def boxes() -> list[torch.Tensor]:
    return [torch.tensor(own, dtype=torch.float32).reshape(-1, 4) for own in BOXES]


def labels() -> list[torch.Tensor]:
    return [torch.tensor(own, dtype=torch.int64) for own in LABELS]


# ------------------------------------------------------------------------ mmdetection


class OneHead(nn.Module):
    """Two levels of features, of strides 8 and 16, and a dense head of mmdetection."""

    def __init__(self, head):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU())
        self.bbox_head = head

    def forward(self, images, instances):
        first = self.backbone(images)
        outputs = self.bbox_head([first, nn.functional.avg_pool2d(first, 2)])
        metas = [{"img_shape": (SIZE, SIZE), "pad_shape": (SIZE, SIZE)} for _ in images]
        losses = self.bbox_head.loss_by_feat(*outputs, batch_gt_instances=instances, batch_img_metas=metas)
        return {k: sum(v) if isinstance(v, list) else v for k, v in losses.items()}


def mmdet_head(kind):
    """A detector with that head and its default losses."""
    needs("mmdet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from standins.mmcv_ops import stand_in

        stand_in()
        from mmdet.models import dense_heads
    anchors = {"type": "AnchorGenerator", "strides": [8, 16], "ratios": [1.0]}
    boxes = {"octave_base_scale": 4, "scales_per_octave": 1}
    assigner = {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": 0.5,
        "neg_iou_thr": 0.4,
        "min_pos_iou": 0,
        "ignore_iof_thr": -1,
    }
    coder = {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]}
    focal = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
    own: dict[str, Any] = {}
    if kind != "FCOSHead":
        own = {
            "anchor_generator": {**anchors, **boxes},
            "bbox_coder": coder,
            "train_cfg": {"assigner": assigner, "allowed_border": -1, "pos_weight": -1, "debug": False},
        }
    if kind == "ATSSHead":
        own["train_cfg"]["assigner"] = {"type": "ATSSAssigner", "topk": 9}
        own["loss_bbox"] = {"type": "GIoULoss", "loss_weight": 2.0}
    if kind == "RetinaHead":
        own["train_cfg"]["sampler"] = {"type": "PseudoSampler"}
    if kind == "FCOSHead":
        own = {"strides": [8, 16], "regress_ranges": ((-1, 24), (24, 1e8))}
    torch.manual_seed(0)
    head = getattr(dense_heads, kind)(CLASSES, 8, feat_channels=32, stacked_convs=1, loss_cls=focal, **own)
    head.init_weights()
    return OneHead(head).train()


def mmdet_batch():
    from mmengine.structures import InstanceData

    return images(), [InstanceData(bboxes=b, labels=y) for b, y in zip(boxes(), labels(), strict=True)]


def _mmdet(kind: str, layer: str) -> Host:
    return Host(
        make=lambda: mmdet_head(kind),
        batch=mmdet_batch,
        step=lambda model, batch: model(*batch),
        cls="loss_cls",
        layers=lambda model: [getattr(model.bbox_head, layer)],
        part=lambda model: model.bbox_head,
    )


# ------------------------------------------------------------------------ detectron2


def detectron2(name):
    """A RetinaNet or FCOS of the stand-in, or of what is installed where that can be made as simply."""
    folder = str(Path(__file__).parent.parent / "standins")
    if folder not in sys.path:
        sys.path.append(folder)
    module = importlib.import_module(f"detectron2.modeling.meta_arch.{name.lower()}")
    torch.manual_seed(0)
    return getattr(module, name)(CLASSES).train()


def detectron2_batch():
    """Anchors are the cells of 8 × 8 and 4 × 4; some are positive, one is neither."""
    batch = []
    for image, own in zip(images(), LABELS, strict=True):
        gt_labels = torch.full((80,), CLASSES)
        for index, label in enumerate(own):
            gt_labels[[9 + index, 66 + index]] = label
            gt_labels[20] = -1
        batch.append({"image": image, "gt_labels": gt_labels})
    return (batch,)


def _detectron2(name: str, key: str) -> Host:
    return Host(
        make=lambda: detectron2(name),
        batch=detectron2_batch,
        step=lambda model, batch: model(*batch),
        cls=key,
        layers=lambda model: [model.head.cls_score],
    )


# ------------------------------------------------------------------------ transformers


def detr(name):
    """One of ``small_detr``."""
    needs("transformers")
    needs("scipy")
    import small_detr

    return small_detr.make(name)


def detr_batch():
    targets = []
    for own, classes in zip(boxes(), labels(), strict=True):
        centres = torch.cat([(own[:, :2] + own[:, 2:]) / 2, own[:, 2:] - own[:, :2]], dim=1) / SIZE
        targets.append({"boxes": centres, "class_labels": classes})
    return {"pixel_values": images(), "labels": targets}


def _detr(name: str, cls: str, sets: int) -> Host:
    return Host(
        make=lambda: detr(name),
        batch=detr_batch,
        step=lambda model, batch: model(**batch).loss_dict,
        cls=cls,
        layers=lambda model: [
            m
            for name, m in model.named_modules()
            if isinstance(m, nn.Linear) and any(part in ("class_embed", "enc_score_head") for part in name.split("."))
        ],
        sets=sets,
    )


# ------------------------------------------------------------------------ ultralytics


def yolo(name):
    needs("ultralytics")
    os.environ.setdefault("YOLO_OFFLINE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ultralytics.nn.tasks import DetectionModel
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=CLASSES, verbose=False)
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=10)  # as its trainer sets them
    return model.train()


def yolo_batch():
    rows = [
        (i, c, *b)
        for i, (own, classes) in enumerate(zip(BOXES, LABELS, strict=True))
        for b, c in zip(own, classes, strict=True)
    ]
    rows = torch.tensor(rows, dtype=torch.float32)
    x1, y1, x2, y2 = (rows[:, 2:] / SIZE).unbind(1)
    centres = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)
    return {"img": images(), "batch_idx": rows[:, 0], "cls": rows[:, 1:2], "bboxes": centres}


def yolo_step(model, batch):
    loss, _ = model(batch)
    return dict(zip(("box", "loss_cls", "dfl"), loss / len(batch["img"]), strict=True))


def yolo_layers(model):
    heads = [model.model[-1].cv3, getattr(model.model[-1], "one2one_cv3", None)]
    return [level[-1] for head in heads if head is not None for level in head]


# ------------------------------------------------------------------------ effdet


def effdet():
    needs("effdet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from effdet import DetBenchTrain, EfficientDet, get_efficientdet_config
    config = get_efficientdet_config("tf_efficientdet_lite0")
    config.image_size, config.num_classes, config.fpn_channels = [128, 128], CLASSES, 16
    config.fpn_cell_repeats, config.box_class_repeats, config.pretrained_backbone = 1, 1, False
    torch.manual_seed(0)
    return DetBenchTrain(EfficientDet(config, pretrained_backbone=False)).train()


def effdet_batch():
    """Boxes are y1, x1, y2, x2 there, and classes begin at 1."""
    large = nn.functional.interpolate(images(), size=(128, 128))
    swapped = [2 * own[:, [1, 0, 3, 2]] for own in boxes()]
    return large, {"bbox": swapped, "cls": [(own + 1).float() for own in labels()]}


# ------------------------------------------------------------------------ MONAI


class PlainNetwork(nn.Module):
    """What MONAI's RetinaNet needs of a feature extractor: one level of stride 8."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.out_channels = 16
        self.convolution = (nn.Conv2d, nn.Conv3d)[dimensions - 2](3, 16, 8, stride=8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"0": nn.functional.relu(self.convolution(x))}


def monai(dimensions: int) -> nn.Module:
    needs("monai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
        from monai.apps.detection.networks.retinanet_network import RetinaNet
        from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
    torch.manual_seed(0)
    generator = AnchorGeneratorWithAnchorShape((1,), ((16,) * dimensions, (32,) * dimensions))
    network = RetinaNet(dimensions, CLASSES, 2, PlainNetwork(dimensions), size_divisible=8)
    detector = RetinaNetDetector(network, generator)
    detector.set_regular_matcher(0.5, 0.4)
    return detector.train()


def monai_batch(dimensions: int) -> tuple[Any, Any]:
    """In three dimensions the boxes reach from the front to half of the depth."""
    if dimensions == 2:
        pictures, found = images(), boxes()
    else:
        pictures = images().unsqueeze(-1).expand(-1, -1, -1, -1, SIZE).contiguous()
        depth = torch.tensor([[0.0, SIZE / 2]])
        found = [
            torch.cat([b[:, :2], depth[:, :1].expand(len(b), 1), b[:, 2:], depth[:, 1:].expand(len(b), 1)], dim=1)
            for b in boxes()
        ]
    targets = [{"boxes": b, "labels": y} for b, y in zip(found, labels(), strict=True)]
    return list(pictures), targets


def _monai(dimensions: int) -> Host:
    return Host(
        make=lambda: monai(dimensions),
        batch=lambda: monai_batch(dimensions),
        step=lambda model, batch: model(*batch),
        cls="classification",
        layers=lambda model: [model.network.classification_head.cls_logits],
    )


# ------------------------------------------------------------------------ LibreYOLO


def libreyolo(*, auxiliary: bool = False) -> nn.Module:
    needs("libreyolo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from libreyolo.models.yolo9.nn import LibreYOLO9Model
    torch.manual_seed(0)
    model = LibreYOLO9Model(config="t", nb_classes=CLASSES)
    return (model.enable_aux() if auxiliary else model).train()


def libreyolo_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Class and box in shares of the image; images with fewer objects have rows of 0."""
    targets = torch.zeros(len(BOXES), 2, 5)
    for row, own, classes in zip(targets, boxes(), labels(), strict=True):
        row[: len(own)] = torch.cat([classes.float().unsqueeze(1), own / SIZE], dim=1)
    return images(), targets


def _libreyolo(sets: int) -> Host:
    return Host(
        make=lambda: libreyolo(auxiliary=sets == 2),
        batch=libreyolo_batch,
        step=lambda model, batch: {
            k: v for k, v in model(*batch).items() if k in ("box_loss", "dfl_loss", "cls_loss")
        },
        cls="cls_loss",
        layers=lambda model: [t[-1] for head in (model.head, model.aux_head) if head is not None for t in head.cv3],
        sets=sets,
    )


HOSTS = {
    "mmdet-retina": _mmdet("RetinaHead", "retina_cls"),
    "mmdet-atss": _mmdet("ATSSHead", "atss_cls"),
    "mmdet-fcos": _mmdet("FCOSHead", "conv_cls"),
    "detectron2-retinanet": _detectron2("RetinaNet", "loss_cls"),
    "detectron2-fcos": _detectron2("FCOS", "loss_fcos_cls"),
    "rt-detr": _detr("rt_detr", "loss_vfl", 5),
    "deformable-detr": _detr("deformable_detr", "loss_ce", 2),
    "yolov8": Host(lambda: yolo("yolov8n"), yolo_batch, yolo_step, "loss_cls", yolo_layers),
    "yolo26": Host(lambda: yolo("yolo26n"), yolo_batch, yolo_step, "loss_cls", yolo_layers, sets=2),
    "libreyolo": _libreyolo(1),
    "libreyolo-auxiliary": _libreyolo(2),
    "monai-2d": _monai(2),
    "monai-3d": _monai(3),
    "effdet": Host(
        effdet,
        effdet_batch,
        lambda model, batch: {k: v for k, v in model(*batch).items() if k != "loss"},
        "class_loss",
        lambda model: [[m for m in model.model.class_net.predict.modules() if isinstance(m, nn.Conv2d)][-1]],
    ),
}
