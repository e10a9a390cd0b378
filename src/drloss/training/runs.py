"""A run folder before the first step: whether it may be written to, what is resumed, what is put on record."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

import drloss
from drloss.data.annotations import Annotations
from drloss.detector.start import Start
from drloss.distributed.ranks import Ranks
from drloss.errors import DataError, UserError, shown
from drloss.evaluation.coco import undefined_ap
from drloss.io.atomic import json_of, write_json
from drloss.training.checkpoints import CHECKPOINTS, MODEL, fingerprint, load_state
from drloss.training.config import Config, make_loss, to_json
from drloss.training.log import BOARD, EVALUATIONS, METRICS, environment
from drloss.training.schedule import scaled_lr

CONFIG = "config.json"
ENVIRONMENT = "environment.json"

HOW_IT_RUNS = (
    *("expects", "workers", "micro_batch", "compile", "channels_last"),
    *("log_every", "eval_every", "eval_batch_size", "checkpoint_every"),
)
"""Settings that change neither what a run learns nor what its detector finds; see :func:`is_pooled`."""
FREE_ON_RESUME = (*HOW_IT_RUNS, "score_threshold", "nms_threshold", "level_candidates", "max_detections")
"""Settings that a resumed run may have otherwise: they change how it runs, not what it learns."""
ROUNDING = ("micro_batch", "compile", "channels_last")
"""Those of them that change the order of sums, and so the last bits."""


def require_new_run(out: Path) -> None:
    """Raise UserError if ``out`` holds a run, or anything of the name of what a run writes."""
    if settings_of(out) is not None:
        raise UserError(f"--out {out}: holds a run already; go on with --resume or name another folder")
    for name in (CONFIG, ENVIRONMENT, MODEL, METRICS, EVALUATIONS, CHECKPOINTS, BOARD):
        if os.path.lexists(out / name):
            raise UserError(f"--out {out}: {name} is there, which a run would write; name another folder")


def settings_of(out: Path) -> dict[str, Any] | None:
    """The settings of the run in ``out``, in JSON types; None if no run has begun there."""
    plain = json_of(out / CONFIG)
    begun = (
        isinstance(plain, dict) and isinstance(plain.get("detector"), dict) and {"loss", "max_iters"} <= plain.keys()
    )
    return plain if begun else None


def versions() -> dict[str, str]:
    """What a checkpoint says of who wrote it."""
    return {"drloss": drloss.__version__, "torch": str(torch.__version__)}


def saved_state(
    out: Path, config: Config, data: str, console: Console, *, force: bool = False
) -> dict[str, Any] | None:
    """The state to resume from, or None where there is no checkpoint yet.

    Args:
        out: run folder.
        config: what the resumed run is to compute.
        data: fingerprint of its splits.
        console: where is told of a damaged checkpoint, and of what differs from the run so far.
        force: go on where data or settings differ.
    Raises:
        UserError: if the data or a setting that decides what is learnt are not those the run began with.
    """
    found = load_state(out / CHECKPOINTS) if (out / CHECKPOINTS).is_dir() else None
    if found is None:
        console.print(f"no checkpoint in {escape(str(out))} yet: starting from the beginning")
        return None
    state, damaged = found
    for message in damaged:
        console.print(f"{message}; using the one before", style="yellow", markup=False, soft_wrap=True)
    changed = changed_settings(state["config"], to_json(config))
    learnt = changed_settings(state["config"], to_json(config), FREE_ON_RESUME)
    differences = [_difference(name, *values) for name, values in learnt.items()]
    if state["data"] != data:
        differences.insert(0, "the data have changed since the run began")
    if differences and not force:
        raise UserError(
            f"--resume {out}: {differences[0]}; resume with the data and settings the run began with, or --force it"
        )
    _require_steps(out, state, config, learnt, differences)
    if state["versions"] != versions():
        written = shown(state["versions"])
        differences.append(f"its checkpoint was written by {written} and goes on with {versions()}")
    for difference in differences:
        warn(console, f"{difference}; the run will not be the one that was begun")
    for name in ROUNDING:
        if name in changed and name not in learnt:
            warn(console, f"{_difference(name, *changed[name])}; {_OTHER_BITS}")
    return state


def _require_steps(
    out: Path, state: dict[str, Any], config: Config, learnt: Collection[str], differences: list[str]
) -> None:
    """Raise UserError if a run would be forced to become another one without a step in which it could."""
    done = state["iteration"]
    if not differences or done < config.max_iters:
        return
    if "max_iters" not in learnt and not (out / MODEL).is_file():
        return  # stopped in its last evaluation: its weights are still to be written
    why = f"has done {done} iterations, and --max-iters is {config.max_iters}: there is none left"
    if "max_iters" not in learnt:
        why = f"has ended after {done} iterations, and {differences[0]}: that would train nothing"
    raise UserError(f"--resume {out}: {why}; give a larger --max-iters, or eval or export the run as it is")


def is_finished(out: Path, state: dict[str, Any], config: Config) -> bool:
    """Whether nothing is left to do for a run whose newest state is ``state``: its last step done, its weights there.

    Other settings of the detector are to be written into the weights' description, and so are something to do.
    """
    changed = set(changed_settings(state["config"], to_json(config))) - set(HOW_IT_RUNS)
    return state["iteration"] >= config.max_iters and not changed and (out / MODEL).is_file()


def require_boxes(train: Annotations) -> None:
    """Raise UserError if there is nothing in a split that a detector could learn to find."""
    if train.ignore.all():
        crowds = f" but {len(train.boxes)} that are ignored (crowds)" if len(train.boxes) else ""
        raise DataError(
            f"{train.name}: no box in its {len(train)} images{crowds}: a detector needs objects to learn from"
        )


_OTHER_BITS = "sums are taken in another order, and the run may end with other last bits"


def _difference(name: str, was: object, now: object) -> str:
    return f"{name} was {shown(was)} and is now {shown(now)}"


def warn(console: Console, words: str) -> None:
    """Print a warning."""
    console.print(f"warning: {words}", style="yellow", markup=False, soft_wrap=True)


def changed_settings(
    was: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """What differs between two configurations in JSON types, but for some settings: by name the two values.

    With a pooled loss ``micro_batch`` is never free.
    """
    before, after = _flat(was), _flat(now)
    free = set(free) - ({"micro_batch"} if is_pooled(now["loss"]) else set())
    return {k: (before.get(k), v) for k, v in after.items() if before.get(k) != v and k not in free}


def is_pooled(loss: str) -> bool:
    """Whether a loss takes the images of a micro-batch together, so that their number changes what is learnt."""
    return getattr(make_loss(loss), "scope", None) == "pooled"


def _flat(plain: dict[str, Any]) -> dict[str, Any]:
    """A configuration in JSON types with the detector's settings beside the others."""
    detector: dict[str, Any] = plain["detector"]
    return {k: v for k, v in plain.items() if k != "detector"} | detector


def announce(
    config: Config, train: Annotations, val: Annotations | None, ranks: Ranks, started: Start, console: Console
) -> None:
    """Print what is about to happen."""

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
    if scaled_lr(config) != config.lr:
        say(
            f"learning rate {config.lr:g} for {config.reference_batch} images becomes {scaled_lr(config):g} for "
            f"{config.batch_size} (Remark 2; --no-scale-lr keeps it)"
        )
    if config.expects and config.loss == "dr" and (train.draw is not None or "shapes" not in config.expects):
        say(f"the preset states, with its own settings and on the data it names: {config.expects}")
    if val is not None and (problem := undefined_ap(val)):
        warn(console, problem)


def write_records(
    out: Path,
    config: Config,
    train: Annotations,
    ranks: Ranks,
    iteration: int,
    started: Start,
    console: Console,
) -> None:
    """Write ``config.json``, and append where and on what the run goes on to ``environment.json``.

    Raises:
        UserError: if ``environment.json`` is there and is not what a run has written.
    """
    path = out / ENVIRONMENT
    earlier = json_of(path) if path.exists() and iteration else []
    if not isinstance(earlier, list) or not all(isinstance(record, dict) for record in earlier):
        raise UserError(
            f"{path}: cut off or altered: it must be a JSON list of records; remove it to go on without it"
        )
    write_json(out / CONFIG, to_json(config))
    data = {"name": train.name, "images": len(train), "classes": list(train.class_names)}
    record = environment(ranks.device, ranks.size) | {"data": data | {"fingerprint": fingerprint(train)}}
    record |= {"from_iteration": iteration, "started_from": [started.words, *started.details]}
    decisive = ("threads", "processes") if ranks.device.type == "cpu" else ("processes",)
    for name in decisive if earlier else ():
        was, now = earlier[-1].get(name), record[name]
        if was != now:
            warn(console, f"{_difference(f'the number of {name}', was, now)}; {_OTHER_BITS}")
    write_json(path, [*earlier, record])
