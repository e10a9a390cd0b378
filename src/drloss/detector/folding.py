"""Frozen batch norms computed within the convolutions before them: the same function, without two passes over memory.

A frozen batch norm is y = s·x + t for each channel, with s = weight / √(variance + ε) and t = bias - s·mean. After a
convolution without bias, x = w∗u, it is y = (s·w)∗u + t. The weights w are trained as before, and the names in the
state dict do not change.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

Features = Callable[[Tensor], Sequence[Tensor]]
_SIDE = 64
"""Side in pixels of the random image on which pairs of layers are found and compared."""
_CLOSE = {torch.float64: 1e-3, torch.float32: 1e-3}
"""Largest difference after folding, as a share of the largest output; half precision is less exact."""


class FoldedConv2d(nn.Conv2d):
    """A convolution that applies the frozen norm after it.

    Attributes:
        norm: that norm, in a tuple, because it is another module's child.
        same_padding: whether it is timm's convolution that pads as TensorFlow does.
    """

    norm: tuple[FrozenBatchNorm2d]
    same_padding: bool

    def forward(self, x: Tensor) -> Tensor:
        """The convolution and its norm."""
        weight, shift = self.folded()
        if self.same_padding:
            from timm.layers import pad_same

            x = pad_same(x, self.weight.shape[-2:], self.stride, self.dilation)
        return functional.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does both."""
        (norm,) = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.weight * scale.reshape(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


class AppliedNorm(FrozenBatchNorm2d):  # type: ignore[misc]
    """A frozen norm that its convolution applies; what is left is the activation that timm joins to it."""

    def forward(self, x: Tensor) -> Tensor:
        """The activation, if there is one."""
        act, drop = getattr(self, "act", None), getattr(self, "drop", None)
        x = x if drop is None else drop(x)
        return x if act is None else act(x)


def fold_norms(body: nn.Module, features: Features) -> None:
    """Fold every frozen norm of a backbone whose input is the output of a convolution without bias.

    Args:
        body: the backbone.
        features: computes its features from images (N, 3, H, W).
    """
    norms = [m for m in body.modules() if "FrozenBatchNorm" in type(m).__name__]
    like = next(body.parameters())
    if not norms or like.is_meta:
        return
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device="cpu", dtype=torch.float32).to(like)

    image = random(1, 3, _SIDE, _SIDE)
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    training = body.training
    body.eval()
    with torch.no_grad():
        for norm in norms:  # a new norm is the identity, with which every folding would seem right
            for buffer in norm.buffers(recurse=False):
                buffer.copy_(0.5 + random(*buffer.shape))
        pairs, before = _pairs(body, features, image)
        classes = [(module, type(module)) for pair in pairs for module in pair]
        for conv, norm in pairs:
            vars(conv).update(same_padding=type(conv) is not nn.Conv2d, norm=(norm,))
            conv.__class__, norm.__class__ = FoldedConv2d, AppliedNorm
        if not all(_close(a, b) for a, b in zip(features(image), before, strict=True)):
            for module, own in classes:  # an output that has other readers than its norm
                module.__class__ = own
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in norm.named_buffers(recurse=False):
                buffer.copy_(buffers[name])
    body.train(training)


def make_constant(model: nn.Module) -> None:
    """Put plain convolutions in the place of those that fold a norm or pad as TensorFlow does, for a file.

    The padding is then a constant: it is the same for every image whose sides are multiples of 32, as all are.
    """
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, FoldedConv2d):
                setattr(parent, name, _plain(conv, *conv.folded(), same=conv.same_padding))
            elif isinstance(conv, nn.Conv2d) and type(conv).__name__ == "Conv2dSame":
                setattr(parent, name, _plain(conv, conv.weight, conv.bias, same=True))


def _plain(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, *, same: bool) -> nn.Module:
    """The convolution with other weights, after constant padding if ``same``."""
    sizes = conv.in_channels, conv.out_channels, (conv.kernel_size[0], conv.kernel_size[1])
    how = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    plain = nn.Conv2d(*sizes, padding=conv.padding, bias=bias is not None, **how)  # type: ignore[arg-type]
    plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
    plain.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    if not same:
        return plain
    lengths = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    top, left = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in lengths)
    return nn.Sequential(nn.ZeroPad2d((left // 2, left - left // 2, top // 2, top - top // 2)), plain)


def _pairs(
    body: nn.Module, features: Features, image: Tensor
) -> tuple[list[tuple[nn.Module, nn.Module]], Sequence[Tensor]]:
    """Convolutions with the frozen norms that read their outputs, and the outputs of the body."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        made[id(output)] = module, output  # which keeps the output, so that no other gets its id

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = []
    for module in body.modules():
        kind = type(module).__name__
        if kind in ("Conv2d", "Conv2dSame") and vars(module)["_parameters"]["bias"] is None:
            hooks.append(module.register_forward_hook(note))
        elif "FrozenBatchNorm" in kind:
            hooks.append(module.register_forward_pre_hook(look))
    outputs = features(image)
    for hook in hooks:
        hook.remove()
    paired_once = {module for pair in pairs for module in pair if sum(module in other for other in pairs) == 1}
    return [pair for pair in pairs if set(pair) <= paired_once], outputs


def _close(a: Tensor, b: Tensor) -> bool:
    difference, largest = (a - b).abs().max().item(), b.abs().max().item()
    return difference <= _CLOSE.get(a.dtype, 5e-2) * largest
