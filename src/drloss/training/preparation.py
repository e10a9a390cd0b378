"""Everything before the first step: checks, the new detector, the state to resume from, the records of the run."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from drloss.data.annotations import Annotations
from drloss.data.checks.problems import Report
from drloss.data.held_out import SPLITS_FILE
from drloss.data.splitting import Splits
from drloss.detector.model import RetinaNet
from drloss.detector.objective import Objective
from drloss.detector.starting_weights import Start, initialise, resolve_detector
from drloss.distributed.ranks import Ranks
from drloss.errors import DataError, UserError
from drloss.evaluation.coco import undefined_ap
from drloss.io.atomic import remove_unfinished, write_json
from drloss.training.average import WeightAverage
from drloss.training.best import Best, has_ended
from drloss.training.checkpoints import newest_first
from drloss.training.config import Config, make_loss
from drloss.training.device import DeviceConfig, for_device
from drloss.training.exporting import keeps_best
from drloss.training.fingerprint import fingerprint
from drloss.training.log import ScalarLog
from drloss.training.messages import announce, warn
from drloss.training.records import write_records
from drloss.training.resume import is_trained_and_exported, saved_state
from drloss.training.run_folder import BEST, CHECKPOINTS, MODEL, require_space, settings_of
from drloss.training.schedule import build_optimizer, state_size, weights_size
from drloss.training.signals import StopRequest
from drloss.training.state import restore
from drloss.training.trainer import Trainer


@dataclass(frozen=True)
class NewDetector:
    """A detector and its loss before training.

    Attributes:
        config: settings of the run, with the norm chosen and what ``auto`` means on this device.
        model: the detector, on the CPU.
        objective: the loss.
        start: description of its starting weights; None if a checkpoint will be loaded instead.
    """

    config: DeviceConfig
    model: RetinaNet
    objective: Objective
    start: Start | None


def require_boxes(train: Annotations) -> None:
    """Raise DataError if a split has no object that a detector could learn to find."""
    if train.ignore.all():
        crowds = f" but {len(train.boxes)} that are ignored (crowds)" if len(train.boxes) else ""
        raise DataError(
            f"{train.name}: no box in its {len(train)} images{crowds}: a detector needs objects to learn from"
        )


def require_fit(config: Config, train: Annotations, val: Annotations | None, ranks: Ranks) -> None:
    """Raise UserError if the batch does not fit the ranks, or ``val`` the classes."""
    share = config.batch_size // ranks.size
    micro_batch = 1 if config.micro_batch == "auto" else min(config.micro_batch, share)
    if config.batch_size % ranks.size or share % micro_batch:
        raise UserError(
            f"batch_size must be a multiple of {ranks.size} processes × {max(micro_batch, 1)} images at a time "
            f"(micro_batch), got {config.batch_size}"
        )
    if val is not None and val.class_names != train.class_names:
        raise UserError(f"{val.name} has other classes than {train.name}: {val.class_names} != {train.class_names}")
    if config.patience and (val is None or val.ignore.all()):
        lacks = "there is no validation split" if val is None else undefined_ap(val)
        raise UserError(f"patience {config.patience} waits for a better AP, and {lacks}")


def new_detector(config: Config, train: Annotations, out: Path, ranks: Ranks, *, resume: bool) -> NewDetector:
    """Build the detector and, unless the run has a checkpoint, load its starting weights.

    Nothing is written: a run whose weights cannot be found leaves no folder.
    """
    so_far = settings_of(out) if resume and newest_first(out / CHECKPOINTS) else None
    if config.detector.norm == "auto":
        config = replace(config, detector=replace(config.detector, norm=_norm_so_far(so_far)))
    config = for_device(config, ranks.device, config.batch_size // ranks.size, so_far)
    if ranks.device.type == "cpu" and config.precision == "fp16":
        raise UserError("precision fp16 needs a CUDA device; use bf16 or fp32 on the CPU")
    config = replace(config, detector=resolve_detector(config.detector, config.weights))
    torch.manual_seed(config.seed)
    loss = make_loss(config.loss)
    model = RetinaNet(config.detector, len(train.class_names), float(loss.prior_probability))
    start = None if newest_first(out / CHECKPOINTS) else _starting_weights(model, config, train, ranks)
    return NewDetector(config, model, Objective(loss, config.detector), start)


def _starting_weights(model: RetinaNet, config: Config, train: Annotations, ranks: Ranks) -> Start:
    ranks.at("fetching weights", slow=True)
    return initialise(model, config.weights, train.class_names)


def _norm_so_far(settings: Mapping[str, Any] | None) -> Literal["auto", "frozen", "group"]:
    """The norm of the run that is resumed, which does not need the file of its starting weights any more."""
    norm: Literal["auto", "frozen", "group"] | None = settings["detector"].get("norm") if settings else None
    return norm if norm in ("frozen", "group") else "auto"


def prepare(
    new: NewDetector,
    train: Annotations,
    val: Annotations | None,
    out: Path,
    ranks: Ranks,
    console: Console,
    stop: StopRequest,
    records: tuple[Mapping[str, Report], Splits | None],
    *,
    resume: bool,
    force: bool,
) -> Trainer | None:
    """Load the checkpoint of a resumed run, move everything to the device, and write the records of the run.

    ``records`` are ``reports`` and ``splits`` of :func:`drloss.training.fit.fit`.

    Returns:
        The run, ready for its next step; None if it has ended already, and then nothing was written.
    """
    config, model = new.config, new.model
    # While a better detector replaces the best, both are there; at the end the best and the last.
    require_space(out, state_size(model, config), weights_size(model) * (1 if val is None else 2))
    data = " ".join(fingerprint(split) for split in (train, val) if split is not None)
    state = saved_state(out, config, data, console, force=force) if resume else None
    if resume and state is None and (out / MODEL).exists():
        raise UserError(f"--resume {out}: holds {MODEL} and no checkpoint; name another folder")
    start = Start("a checkpoint") if state else new.start or _starting_weights(model, config, train, ranks)
    model.to(ranks.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "fp16")
    iteration, last_ap, evaluated, best = 0, math.nan, True, Best()
    if state:
        restore(state, model, optimizer, scaler, f"--resume {out}: its checkpoint")
        iteration, last_ap, evaluated = state["iteration"], state["last_ap"], state["evaluated"] or val is None
        best = _best_so_far(state, data, out, console)
    require_same_on_all_ranks(ranks, data, iteration)
    if state and evaluated and is_trained_and_exported(out, state, config):
        more = "--force with a larger --max-iters" if iteration >= config.max_iters else "a larger --patience"
        console.print(
            f"the run has ended already, with its {iteration} iterations: nothing is left to do, and "
            f"nothing was changed ({more} goes on)",
            soft_wrap=True,
        )
        return None
    parallel = _parallel(model, config, ranks)
    average = _average(model, config, state, f"--resume {out}: its checkpoint")
    announce(config, train, val, ranks, start, console)
    if iteration:
        console.print(f"resuming after iteration {iteration}")
    ranks.wait()
    if ranks.first:
        remove_unfinished(out)
        if not has_ended(iteration, best, config):
            (out / MODEL).unlink(missing_ok=True)  # of a shorter run that --force or --patience extends
        write_records(out, config, train, ranks, iteration, start, console)
        reports, splits = records
        for name, report in reports.items():
            report.write(out / name)
        if splits is not None:
            write_json(out / SPLITS_FILE, splits.to_json())
    log = ScalarLog(out, iteration, evaluated=evaluated) if ranks.first else None
    ranks.wait()
    return Trainer(
        config=config,
        train=train,
        val=val,
        out=out,
        ranks=ranks,
        console=console,
        stop=stop,
        fingerprint=data,
        model=model,
        parallel=parallel,
        objective=new.objective,
        optimizer=optimizer,
        scaler=scaler,
        log=log,
        iteration=iteration,
        last_ap=last_ap,
        evaluated=evaluated,
        best=best,
        average=average,
    )


def _best_so_far(state: dict[str, Any], data: str, out: Path, console: Console) -> Best:
    """The best evaluation of the run that is resumed; none if it is now evaluated on other images."""
    best = Best(**state["best"])
    if best.iteration and len(data.split()) == 2 and data.split()[1:] != state["data"].split()[1:]:
        warn(console, f"the AP {best.ap:.1f} of iteration {best.iteration} is of another split: the best begins anew")
        return Best()
    if best.iteration and not keeps_best(out, best):
        what = f"{out / BEST} is not the detector of iteration {best.iteration}, the best so far"
        warn(console, f"{what}; a better evaluation replaces it")
    return best


def _average(model: RetinaNet, config: Config, state: dict[str, Any] | None, source: str) -> WeightAverage | None:
    """The average of the weights, if one is wanted; it begins with the weights as they are, or goes on."""
    if not config.ema:
        return None
    average = WeightAverage(model, config.ema)
    if state and state["average"]:
        average.load(state["average"], source)
    if config.compile:
        _compile(average.model)
    return average


def require_same_on_all_ranks(ranks: Ranks, data: str, iteration: int) -> None:
    """Raise UserError if a rank has other data or another checkpoint than rank 0."""
    everyone = ranks.gather({"data": data, "checkpoint": f"iteration {iteration}"})
    for rank, seen in enumerate(everyone):
        for what, value in seen.items():
            if value != everyone[0][what]:
                raise UserError(
                    f"rank {rank} has another {what} than rank 0 ({value} and {everyone[0][what]}): --data and "
                    "--out must be the same on every machine, on a disk that they share"
                )


def _compile(model: RetinaNet) -> None:
    for part in (model.backbone, model.cls_head, model.box_head):
        part.compile()


def _parallel(model: RetinaNet, config: Config, ranks: Ranks) -> torch.nn.Module:
    """The detector, compiled if asked, that averages its gradients over ranks."""
    if config.compile:
        _compile(model)
    if ranks.size == 1:
        return model
    for buffer in model.buffers():  # no step changes one: they are sent once, not in every step
        dist.broadcast(buffer, 0)
    if ranks.device.type == "cuda":
        return DistributedDataParallel(model, device_ids=[ranks.device], broadcast_buffers=False)
    # After its first step DDP reorders its buckets, and with three or more ranks another order gives another sum: a
    # resumed run would differ in its last bits from an uninterrupted one. DDP does not reorder when it looks for
    # unused parameters. There are none, of which it warns.
    warnings.filterwarnings("ignore", message="find_unused_parameters=True")
    return DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)
