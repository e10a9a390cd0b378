"""Small detectors of transformers with random weights, and a batch for them. Needs transformers, scipy and pillow."""

import torch
import transformers as hf

CLASSES = 3
SIZES = {"decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "num_queries": 12}
ENCODER = {"encoder_ffn_dim": 32, "encoder_attention_heads": 2}


def backbone():
    return hf.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def rt_detr(model=hf.RTDetrForObjectDetection, config=hf.RTDetrConfig, **options):
    own = {
        "d_model": 32,
        "encoder_hidden_dim": 32,
        "encoder_in_channels": [16, 16, 16],
        "decoder_in_channels": [32, 32, 32],
        "hidden_expansion": 0.5,
        "num_denoising": 6,
        "num_labels": CLASSES,
    }
    return model(config(backbone_config=backbone(), **(own | SIZES | ENCODER | options)))


def rt_detr_v2(**options):
    return rt_detr(hf.RTDetrV2ForObjectDetection, hf.RTDetrV2Config, **options)


def other(model, config, **options):
    own = {"encoder_layers": 1, "auxiliary_loss": True, "dropout": 0.0, "num_labels": CLASSES}
    return model(config(backbone_config=backbone(), **(own | SIZES | ENCODER | options)))


def deformable_detr(**options):
    options = {"d_model": 32, "num_feature_levels": 3} | options
    return other(hf.DeformableDetrForObjectDetection, hf.DeformableDetrConfig, **options)


def conditional_detr(**options):
    return other(hf.ConditionalDetrForObjectDetection, hf.ConditionalDetrConfig, **({"d_model": 32} | options))


def dab_detr(**options):
    return other(hf.DabDetrForObjectDetection, hf.DabDetrConfig, **({"hidden_size": 32} | options))


MODELS = {
    "rt_detr": rt_detr,
    "rt_detr_v2": rt_detr_v2,
    "deformable_detr": deformable_detr,
    "conditional_detr": conditional_detr,
    "dab_detr": dab_detr,
}
RT_DETR = ("rt_detr", "rt_detr_v2")


def make(name, seed=0, **options):
    """A detector in training mode."""
    torch.manual_seed(seed)
    return MODELS[name](**options).train()


def batch():
    """Three images of 64 × 64 pixels with two objects, one and none."""
    generator = torch.Generator().manual_seed(0)
    boxes = [[[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.2]], [[0.5, 0.4, 0.3, 0.3]], []]
    classes = [[0, 2], [1], []]
    return {
        "pixel_values": torch.rand(3, 3, 64, 64, generator=generator),
        "labels": [
            {"class_labels": torch.tensor(c, dtype=torch.int64), "boxes": torch.tensor(b).reshape(-1, 4)}
            for c, b in zip(classes, boxes, strict=True)
        ],
    }
