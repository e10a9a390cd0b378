"""A tiny detector of random weights, in a file, and what it finds in an image."""

import torch

from drloss.detector.config import DetectorConfig
from drloss.detector.detections import detect
from drloss.detector.exported import DetectorFile, save_detector
from drloss.detector.model import RetinaNet
from drloss.inference.images import prepared

NAMES = ("disc", "square", "triangle", "star")
TINY = DetectorConfig(
    backbone="resnet10",
    norm="frozen",
    fpn_channels=16,
    top_level=5,
    head_depth=1,
    head_channels=16,
    anchor_scale=2.0,
    anchor_octaves=1,
    short_side=64,
    max_side=96,
    level_candidates=60,
    max_detections=100,
    score_threshold=0.3,
)


def random_detector(path, config=TINY, seed=0, threshold=None):
    """Write a detector of random weights that finds many things, with scores far apart."""
    torch.manual_seed(seed)
    model = RetinaNet(config, len(NAMES), 0.5).eval()
    with torch.no_grad():
        for head, spread in ((model.cls_head, 0.03), (model.box_head, 0.03)):
            for parameter in head.parameters():
                parameter.normal_(0, spread)
    save_detector(path, model.state_dict(), DetectorFile(model.config, NAMES, (1, 2, 3, 4), "dr", threshold))
    return model


@torch.no_grad()
def detect_image(model, image, path=None):
    """Detections of a model on the CPU in one uint8 image (3, H, W)."""
    pixels, frame = prepared(image, model.config, path=path)
    (detection,) = detect(model(pixels.unsqueeze(0)), [frame], model.config)
    return detection


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))
