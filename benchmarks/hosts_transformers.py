"""Detectors of transformers with their own classification loss and with DR through the adapter, on one data set.

python -m benchmarks.hosts_transformers --data shapes:size=96 --models rt_detr deformable_detr --max-iters 300

Small models of random weights on small images: this shows that the adapted detectors learn, and not how far DR is
ahead. All losses have the same initial weights but for the classifiers' bias, the same batches and the same budget.
"""

import argparse

import torch
from torch import Tensor, nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from benchmarks.hosts import targets_of
from benchmarks.measure import surroundings
from drloss import check
from drloss.adapters import adapt
from drloss.data.annotations import Annotations
from drloss.data.formats.opening import open_data
from drloss.evaluation.coco import evaluate

BATCH, LR = 8, 5e-4
COMMON = {"d_model": 64, "num_queries": 40, "decoder_layers": 3, "decoder_ffn_dim": 128, "decoder_attention_heads": 4}


def backbone() -> RTDetrResNetConfig:
    """A narrow ResNet, levels of stride 8, 16 and 32."""
    return RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def rt_detr(classes: int, *, config: type = RTDetrConfig, model: type = RTDetrForObjectDetection) -> nn.Module:
    """With 20 denoising queries to an image."""
    built: nn.Module = model(
        config(
            backbone_config=backbone(),
            freeze_backbone_batch_norms=False,
            encoder_hidden_dim=64,
            encoder_in_channels=[32, 64, 64],
            encoder_ffn_dim=128,
            encoder_attention_heads=4,
            decoder_in_channels=[64, 64, 64],
            hidden_expansion=0.5,
            num_denoising=20,
            num_labels=classes,
            **COMMON,
        )
    )
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):  # started near 0 by transformers, for weights that are loaded
            nn.init.ones_(module.weight)
    return built


def rt_detr_v2(classes: int) -> nn.Module:
    """The same of version 2."""
    return rt_detr(classes, config=RTDetrV2Config, model=RTDetrV2ForObjectDetection)


def deformable_detr(classes: int) -> nn.Module:
    """With auxiliary losses and refined boxes."""
    config = DeformableDetrConfig(
        backbone_config=backbone(),
        encoder_layers=1,
        encoder_ffn_dim=128,
        encoder_attention_heads=4,
        num_feature_levels=3,
        auxiliary_loss=True,
        with_box_refine=True,
        dropout=0.0,
        num_labels=classes,
        **COMMON,
    )
    built: nn.Module = DeformableDetrForObjectDetection(config)
    for parameter in built.parameters():  # of random weights, the backbone learns, too
        parameter.requires_grad_(True)
    return built


MODELS = {"rt_detr": rt_detr, "rt_detr_v2": rt_detr_v2, "deformable_detr": deformable_detr}


def batch_of(data: Annotations, indices: list[int]) -> dict[str, object]:
    """Images and labels as transformers takes them; the images are of one size."""
    images, targets = zip(*(targets_of(data, i) for i in indices), strict=True)
    height, width = images[0].shape[1:]
    size = torch.tensor([width, height, width, height])
    labels = []
    for target in targets:
        low, high = (target["boxes"] / size).split(2, dim=1)
        boxes = torch.cat([(low + high) / 2, high - low], dim=1)
        labels.append({"class_labels": target["labels"] - 1, "boxes": boxes})
    return {"pixel_values": (torch.stack(images) - 0.5) / 0.25, "labels": labels}


def train(model: nn.Module, data: Annotations, iterations: int, seed: int) -> dict[str, Tensor]:
    """AdamW with a cosine to zero; the parts of the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=iterations, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(iterations):
        chosen = torch.randint(len(data), (BATCH,), generator=generator).tolist()
        out = model(**batch_of(data, chosen))
        optimizer.zero_grad()
        out.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    parts: dict[str, Tensor] = out.loss_dict
    return parts


def shares(model: nn.Module, batch: dict[str, object]) -> tuple[float, float]:
    """Norms of the gradients that the classes and the boxes send into all but their own heads."""
    out = model.train()(**batch)
    names = [n for n, p in model.named_parameters() if "embed" not in n and "head" not in n and p.requires_grad]
    parameters = [dict(model.named_parameters())[n] for n in names]
    of_classes = sum(v for k, v in out.loss_dict.items() if k.startswith(("loss_vfl", "loss_ce")))
    norms = []
    for part in (of_classes, out.loss - of_classes):
        found = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
        norms.append(float(torch.stack([g.norm() for g in found if g is not None]).norm()))
    return norms[0], norms[1]


@torch.no_grad()
def measure(model: nn.Module, data: Annotations) -> dict[str, float]:
    """COCO metrics in percent, of the 100 best pairs of query and class."""
    model.eval()
    found = []
    for index in range(len(data)):
        batch = batch_of(data, [index])
        height, width = batch["pixel_values"].shape[2:]
        out = model(pixel_values=batch["pixel_values"])
        scores, best = out.logits[0].sigmoid().flatten().topk(100)
        classes = out.logits.shape[2]
        middle, sides = out.pred_boxes[0][best // classes].split(2, dim=1)
        boxes = torch.cat([middle - sides / 2, middle + sides / 2], dim=1)
        size = torch.tensor([width, height, width, height])
        found.append({"boxes": boxes * size, "scores": scores, "labels": best % classes + 1})
    return evaluate(data, found).metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="shapes:size=96", help="as for drloss train; images of one size")
    parser.add_argument("--models", nargs="+", default=["rt_detr", "deformable_detr"], choices=list(MODELS))
    parser.add_argument("--losses", nargs="+", default=["own", "dr"], help="own is transformers'")
    parser.add_argument("--max-iters", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source = open_data(options.data)
    data, val = (source.read(split)[0] for split in ("train", "val"))
    print(", ".join(f"{key} {value}" for key, value in surroundings("cpu").items()))
    print(f"{source.name}, {options.max_iters} iterations of {BATCH}, seed {options.seed}\n")
    print(
        "| model | loss | gradient, class : box | at the end | AP | AP50 | check |\n|---|---|---|---|---:|---:|---|"
    )
    for name in options.models:
        for loss in options.losses:
            torch.manual_seed(options.seed)
            model = MODELS[name](len(data.class_names))
            batch = batch_of(data, list(range(16)))
            seen = "–"
            if loss != "own":
                adapt(model, loss)
                report = check(model, batch, num_classes=len(data.class_names))
                seen = "green" if report.ok else str(report)
            torch.manual_seed(options.seed)
            before = shares(model, batch)
            train(model, data, options.max_iters, options.seed)
            after = shares(model, batch)
            metrics = measure(model, val)
            row = [name, loss, *(f"{a:.3g} : {b:.3g}" for a, b in (before, after))]
            row += [f"{metrics['AP']:.1f}", f"{metrics['AP50']:.1f}", seen]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
