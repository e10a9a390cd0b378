"""Remarks on data that can be read but may not serve their purpose: classes without boxes, objects too small.

A remark changes nothing and refuses nothing; ``drloss data`` prints it before its conclusion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt

from drloss.data.annotations import Annotations
from drloss.errors import printable

FEW_BOXES = 10
"""Number of boxes of a class below which it can hardly be learnt, and its AP means nothing."""
MOST_SMALL = 0.25
"""Share of all objects that may be too small without a remark; of the objects of one class, half may."""
_MOST_NAMED = 8
_MULTIPLE = 32
"""The advised short side is a multiple of this."""
LARGEST_SIDE = 2048
"""Largest short side in pixels that is advised; beyond it, the advice is to cut the images into tiles."""


@dataclass(frozen=True)
class InputSize:
    """The size to which a detector resizes images, and the objects that it can learn.

    Attributes:
        name: the options that say so, in messages.
        short_side, max_side: arguments of :func:`drloss.data.transforms.resized_size`.
        smallest_anchor: side of the smallest square anchor, in pixels of the resized image.
        positive_iou: least IoU of an anchor with an object that it matches.
        ratios: height by width of the anchors.
    """

    name: str
    short_side: int
    max_side: int
    smallest_anchor: float
    positive_iou: float
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def smallest_object(self) -> float:
        """Side of the smallest square object that the smallest anchor matches, with the same centre."""
        return self.smallest_anchor * sqrt(self.positive_iou)

    def scales(self, sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        """The factors (N,) by which images of these (N, 2) sizes are resized."""
        scale: npt.NDArray[np.float64] = np.minimum(self.short_side / sizes.min(1), self.max_side / sizes.max(1))
        return scale


def class_remarks(splits: Mapping[str, Annotations]) -> list[str]:
    """Remarks on classes with few boxes or none, without boxes to ignore; training uses the first split."""
    counts = {split: _by_class(annotations) for split, annotations in splits.items()}
    names = list(dict.fromkeys(name for own in counts.values() for name in own))
    if not names:
        return []
    first = next(iter(counts))
    never = [n for n in names if not any(own.get(n, 0) for own in counts.values())]
    not_first = [n for n in names if n not in never and not counts[first].get(n, 0)]
    few = {n: counts[first][n] for n in names if 0 < counts[first].get(n, 0) < FEW_BOXES}
    remarks = []
    if never:
        also = "; an export of Roboflow lists its super-category so" if _is_first(names, never) else ""
        what = "a class" if len(never) == 1 else f"{len(never):,} classes"
        remarks.append(f"{what} without a box in any split, never learnt and in no AP: {_listed(never)}{also}")
    if not_first:
        what = "a class" if len(not_first) == 1 else f"{len(not_first):,} classes"
        remarks.append(f"{what} without a box in {printable(first)}, never learnt: {_listed(not_first)}")
    if few:
        what = "a class" if len(few) == 1 else f"{len(few):,} classes"
        named = [f"{name} ({count})" for name, count in few.items()]
        remarks.append(f"{what} with less than {FEW_BOXES} boxes in {printable(first)}: {_listed(named)}")
    return remarks


def _is_first(names: Sequence[str], never: Sequence[str]) -> bool:
    """Whether the only class without a box is the first of several, as Roboflow's super-category is."""
    return len(names) > 1 and list(never) == [names[0]]


def size_remarks(split: str, annotations: Annotations, size: InputSize) -> list[str]:
    """Remarks on objects that are too small for the smallest anchor after resizing, and the short side to use."""
    boxes = annotations.boxes[~annotations.ignore]
    if not len(boxes):
        return []
    counts = np.diff(annotations.first_box)
    sizes = annotations.sizes.repeat(counts, axis=0)[~annotations.ignore]
    labels = annotations.labels[~annotations.ignore]
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    seen = sides * size.scales(sizes)
    small = seen < size.smallest_object
    number = np.bincount(labels, minlength=len(annotations.class_names) + 1)
    of_class = np.bincount(labels[small], minlength=len(annotations.class_names) + 1)
    mostly = [n for k, n in enumerate(annotations.class_names, 1) if of_class[k] * 2 >= max(number[k], 1)]
    if small.mean() < MOST_SMALL and not mostly:
        return []
    fifth, middle = np.quantile(seen, (0.05, 0.5))
    wanted = float(np.quantile(sizes.min(1) * size.smallest_object / sides, 0.95))
    side = ceil(wanted / _MULTIPLE) * _MULTIPLE
    advice = f"--short-side {side} would do for 95 % of all"
    if side > LARGEST_SIDE:
        advice = f"it would take --short-side {side:,}: cut the images into tiles, or leave the smallest to chance"
    of = f", most of {_listed(mostly)} among them," if mostly and len(mostly) < len(annotations.class_names) else ""
    return [
        f"{printable(split)}: with {size.name}, {small.mean():.0%} of the objects{of} are smaller than "
        f"{size.smallest_object:.0f} px, the least that its smallest anchor ({size.smallest_anchor:.0f} px) matches: "
        f"with its short side of {size.short_side} px objects have {middle:.0f} px in the median, {fifth:.0f} px "
        f"at 5 %; {advice}"
    ]


def shape_remarks(split: str, annotations: Annotations, size: InputSize) -> list[str]:
    """Remarks on objects that are longer than the anchors, and the ratios to use.

    Of two boxes of one area and centre, of which one is f times as long for its width as the other, the IoU is
    1 / (2 sqrt(f) - 1).
    """
    boxes = annotations.boxes[~annotations.ignore]
    if not len(boxes):
        return []
    ratios = (boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0])
    reach = ((1 / size.positive_iou + 1) / 2) ** 2
    matched = _reached(ratios, size.ratios, reach)
    if matched.mean() > 1 - MOST_SMALL:
        return []
    ends = np.quantile(ratios, (0.05, 0.5, 0.95))
    wanted = sorted({*size.ratios, *(float(f"{v:.2g}") for v in ends[~_reached(ends, size.ratios, reach)])})
    return [
        f"{printable(split)}: with {size.name}, {1 - matched.mean():.0%} of the objects are longer or higher than "
        f"its anchors match (height by width {ends[0]:.2g} / {ends[1]:.2g} / {ends[2]:.2g} at 5, 50 and 95 %); "
        f"--anchor-ratios {','.join(f'{v:g}' for v in wanted)} would match them"
    ]


def _reached(ratios: npt.NDArray[np.float64], own: Sequence[float], reach: float) -> npt.NDArray[np.bool_]:
    """Whether each ratio is within the factor ``reach`` of one of ``own``."""
    factors: npt.NDArray[np.float64] = np.abs(np.log(ratios[:, None] / np.asarray(own)))
    within: npt.NDArray[np.bool_] = (factors <= np.log(reach)).any(1)
    return within


def _by_class(annotations: Annotations) -> dict[str, int]:
    labels = annotations.labels[~annotations.ignore]
    counts = np.bincount(labels, minlength=len(annotations.class_names) + 1)[1:]
    return dict(zip(annotations.class_names, counts.tolist(), strict=True))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(map(printable, names[:_MOST_NAMED])) + (f" and {more:,} more" if more > 0 else "")
