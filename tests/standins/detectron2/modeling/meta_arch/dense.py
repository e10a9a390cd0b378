import torch
from torch import nn


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.cls_score = nn.Conv2d(8, num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(8, 4, 3, padding=1)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.constant_(self.cls_score.bias, -4.6)


class DenseDetector(nn.Module):
    """Images are a list of dicts with ``image`` and ``gt_labels``; each cell of two levels is an anchor."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU())
        self.head = Head(num_classes)
        self.loss_normalizer = 100.0

    def forward(self, batched_inputs):
        first = self.backbone(torch.stack([one["image"] for one in batched_inputs]))
        levels = [first, nn.functional.avg_pool2d(first, 2)]
        logits = [self.head.cls_score(x).flatten(2).transpose(1, 2) for x in levels]
        deltas = [self.head.bbox_pred(x).flatten(2).transpose(1, 2) for x in levels]
        gt_labels = [one["gt_labels"] for one in batched_inputs]
        gt_boxes = [torch.zeros(len(labels), 4) for labels in gt_labels]
        return self.losses(None, logits, gt_labels, deltas, gt_boxes)

    def normalised(self, logits, gt_labels, deltas, gt_boxes):
        labels = torch.stack(gt_labels)
        positive = (labels >= 0) & (labels != self.num_classes)
        self.loss_normalizer = 0.9 * self.loss_normalizer + 0.1 * max(int(positive.sum()), 1)
        hot = nn.functional.one_hot(labels[labels >= 0], self.num_classes + 1)[:, :-1].float()
        scores = torch.cat(logits, dim=1)[labels >= 0]
        cls = nn.functional.binary_cross_entropy_with_logits(scores, hot, reduction="sum")
        box = (torch.cat(deltas, dim=1) - torch.stack(gt_boxes))[positive].abs().sum()
        return cls / self.loss_normalizer, box / self.loss_normalizer
