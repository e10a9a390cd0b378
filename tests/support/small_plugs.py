"""Small models with a loss put on them, for the tests of drloss.check."""

import torch
from torch import nn

from drloss import DRLoss, dr_loss
from small_detectors import batch


class Head(nn.Module):
    """A classifier over the cells of two pyramid levels, and one way to put the loss on it."""

    def __init__(self, wrong="", classes=3, prior=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.wrong = wrong
        self.classes = classes
        self.layer = nn.Conv2d(3, classes, 8, stride=8)
        nn.init.normal_(self.layer.weight, std=0.01)
        nn.init.constant_(self.layer.bias, torch.logit(torch.tensor(prior)).item())
        self.loss = DRLoss(scope="pooled") if wrong == "pooled" else DRLoss()
        self.normaliser = 37.0

    def forward(self, images, targets):
        levels = [images, nn.functional.avg_pool2d(images, 2)]
        logits = [self.layer(x).flatten(2).transpose(1, 2) for x in levels]
        labels = [torch.zeros(x.shape[:2], dtype=torch.int64) for x in logits]
        first = 1 if self.wrong == "background" else 0
        for image, target in enumerate(targets):
            for index, label in enumerate(target["labels"]):
                labels[0][image, 5 + index] = label + first
                labels[0][image, 20 + index] = -1
        return {"loss_cls": self.put(logits, labels), "loss_box": self.layer.weight.sum() * 0}

    def put(self, logits, labels):
        joined, marks = torch.cat(logits, dim=1), torch.cat(labels, dim=1)
        positives = (marks > 0).sum()
        match self.wrong:
            case "sigmoid":
                return self.loss(joined.sigmoid().reshape(joined.shape), marks)
            case "softmax":
                return self.loss(torch.cat([x.softmax(dim=-1) for x in logits], dim=1), marks)
            case "not finite":
                return self.loss(joined / 0, marks)
            case "from zero":
                return self.loss(joined, (marks - 1).clamp(min=0))
            case "times 1.1":
                return self.loss(joined, marks) * 1.1
            case "function, divided":
                return 4 * dr_loss(joined, marks) / positives
            case "levels":
                return sum(self.loss(x, y) for x, y in zip(logits, labels, strict=True))
            case "divided":
                return self.loss(joined, marks) / positives
            case "divided by an image's":
                return self.loss(joined, marks) * len(joined) / positives
            case "running mean":
                return self.loss(joined, marks) / self.normaliser
            case "flattened":
                return self.loss(joined.reshape(1, -1, self.classes), marks.reshape(1, -1))
            case "detached":
                return self.loss(joined.detach().requires_grad_(), marks)
            case "not called":
                return joined.sigmoid().mean()
            case "sum":
                return 4 * dr_loss(joined, marks, reduction="sum")
        return self.loss(joined, marks)


def images_and_targets():
    images, targets = batch(3)
    targets[2] = {"boxes": torch.rand(3, 4), "labels": torch.tensor([2, 2, 1])}
    return torch.stack(images), targets


def verdicts(report):
    return {finding.name: finding.ok for finding in report.findings}


class Layers(Head):
    """Two decoder layers, each with candidates of its own, and an output like that of transformers."""

    def forward(self, images, targets):
        parts, labels = {}, torch.zeros(len(images), 64, dtype=torch.int64)
        for image, target in enumerate(targets):
            labels[image, : len(target["labels"])] = target["labels"]
        logits = self.layer(images).flatten(2).transpose(1, 2)
        for key in ("loss_ce", "loss_ce_0"):
            parts |= {key: self.put([logits], [labels]), key.replace("ce", "bbox"): logits.sum() * 0}
        return {"loss": sum(parts.values()), "loss_dict": parts, "enc_outputs_class": logits}


class Loop(nn.Module):
    """A training loop of one's own: logits and labels of two levels go to a function that makes the loss of them."""

    def __init__(self, put, classes=3, **losses):
        super().__init__()
        torch.manual_seed(0)
        self.put = put
        self.layer = nn.Conv2d(3, classes, 8, stride=8)
        nn.init.normal_(self.layer.weight, std=0.01)
        nn.init.zeros_(self.layer.bias)
        for name, loss in losses.items():
            self.add_module(name, loss)

    def forward(self, images, targets):
        levels = [images, nn.functional.avg_pool2d(images, 2)]
        logits = [self.layer(x).flatten(2).transpose(1, 2) for x in levels]
        labels = [torch.zeros(x.shape[:2], dtype=torch.int64) for x in logits]
        for row, target in zip(labels[0], targets, strict=True):
            count = len(target["labels"])
            row[5 : 5 + count], row[20 : 20 + count] = target["labels"], -1
        return self.put(self, logits, labels)


def joined(levels):
    return torch.cat(levels, dim=1)


def loop(put, **kwargs):
    return Loop(put, loss=DRLoss(), **kwargs)
