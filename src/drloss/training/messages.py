"""What a run prints: its beginning, and warnings."""

from rich.console import Console

from drloss.data.annotations import Annotations
from drloss.detector.starting_weights import Start
from drloss.distributed.ranks import Ranks
from drloss.evaluation.coco import undefined_ap
from drloss.training.config import Config
from drloss.training.schedule import scaled_lr


def warn(console: Console, words: str) -> None:
    """Print a warning."""
    console.print(f"warning: {words}", style="yellow", markup=False, soft_wrap=True)


def announce(
    config: Config, train: Annotations, val: Annotations | None, ranks: Ranks, started: Start, console: Console
) -> None:
    """Print the data, the detector, the length of the run and the learning rate."""

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    boxes, classes = int((~train.ignore).sum()), len(train.class_names)
    say(f"{train.name}: {len(train)} images, {boxes} boxes, {classes} classes")
    say(f"{config.detector.backbone} ({config.detector.norm} norm) from {started.words}; loss {config.loss}")
    for line in started.details:
        say(f"  {line}")
    epochs = config.max_iters * config.batch_size / max(len(train), 1)
    say(
        f"{config.max_iters} iterations of {config.batch_size} images ({epochs:.1f} epochs) on {ranks.size} "
        f"process(es), {ranks.device}, {config.precision}"
    )
    if ranks.device.type == "cuda":
        order = "channels last" if config.channels_last else "channels first"
        say(f"on this device: {config.micro_batch} images at a time, {order}, {config.workers} loading process(es)")
    if scaled_lr(config) != config.lr:
        say(
            f"learning rate {config.lr:g} for {config.reference_batch} images becomes {scaled_lr(config):g} for "
            f"{config.batch_size} (Remark 2; --no-scale-lr keeps it)"
        )
    if config.expects and config.loss == "dr" and (train.draw is not None or "shapes" not in config.expects):
        say(f"the preset states, with its own settings and on the data it names: {config.expects}")
    if val is not None and (problem := undefined_ap(val)):
        warn(console, problem)
