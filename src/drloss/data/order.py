"""The order of the training images.

It depends on (seed, epoch) only. So the images of an iteration's batch are the same for any number of workers and
devices, and after any interruption.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from drloss.data.annotations import Annotations
from drloss.data.transforms import Augmentation, padded_size, resized_size
from drloss.errors import UserError


@dataclass(frozen=True)
class Key:
    """One image of a batch.

    Attributes:
        epoch: the epoch, which decides the augmentation.
        index: position of the image in the annotations.
        padded: height and width of the image after its own padding.
    """

    epoch: int
    index: int
    padded: tuple[int, int]


class TrainingOrder:
    """The endless sequence of training batches.

    Each epoch is one permutation of all images. Images that are wider than high are not batched with the others
    (aspect-ratio grouping, as in the paper's codebase). Images that do not fill a batch wait for the next epoch's, so
    that no image is left out or repeated.

    Args:
        annotations: the split to train on.
        augmentation: decides the sizes.
        batch_size: number of images of a batch over all devices and micro-batches.
        seed: seed of the order and of the augmentation.
        keep_empty: also train on images without any object to learn.
    """

    def __init__(
        self,
        annotations: Annotations,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        keep_empty: bool = True,
    ) -> None:
        self.annotations = annotations
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.seed = seed
        self.positions = np.arange(len(annotations))
        if not keep_empty:
            learnable = np.add.reduceat(np.append(~annotations.ignore, False), annotations.first_box[:-1])
            learnable = np.where(np.diff(annotations.first_box) > 0, learnable, 0)
            self.positions = np.flatnonzero(learnable)
        if not len(self.positions):
            raise UserError(
                f"{annotations.name}: there is no image {'' if keep_empty else 'with an object '}to train on"
            )

    def batches(self, start: int = 0) -> Iterator[list[Key]]:
        """The batches of iterations ``start``, ``start`` + 1, ..., without end."""
        for samples in islice(self._groups(), start, None):
            yield [Key(epoch, index, padded_size(self._size(epoch, index))) for epoch, index in samples]

    def _groups(self) -> Iterator[list[tuple[int, int]]]:
        wide = self.annotations.sizes[:, 1] > self.annotations.sizes[:, 0]
        waiting: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        epoch = 0
        while True:
            for index in np.random.default_rng((self.seed, epoch)).permutation(self.positions).tolist():
                group = waiting[bool(wide[index])]
                group.append((epoch, index))
                if len(group) == self.batch_size:
                    yield group.copy()
                    group.clear()
            epoch += 1

    def _size(self, epoch: int, index: int) -> tuple[int, int]:
        short, _ = self.augmentation.draw(self.seed, epoch, index)
        height, width = (int(s) for s in self.annotations.sizes[index])
        return resized_size(height, width, short, self.augmentation.max_side)
