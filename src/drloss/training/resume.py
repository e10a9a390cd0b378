"""What decides a resume: which settings may have changed, and whether the data and the settings allow it."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from drloss.errors import UserError, shown
from drloss.training.best import Best, has_ended
from drloss.training.config import AUTO, Config, is_pooled, later_settings, to_json
from drloss.training.device import FEW
from drloss.training.messages import warn
from drloss.training.run_folder import CHECKPOINTS, MODEL
from drloss.training.state import load_state, versions

HOW_IT_RUNS = (
    *("expects", "cache", "workers", "micro_batch", "compile", "channels_last"),
    *("log_every", "eval_every", "eval_batch_size", "log_images", "checkpoint_every"),
)
"""Settings that change neither what a run learns nor what its detector finds; but see :func:`changed_settings`."""
FREE_ON_RESUME = (*HOW_IT_RUNS, "patience", "score_threshold", "nms_threshold", "level_candidates", "max_detections")
"""Settings that may change on a resume, because they do not change what the run learns."""
ROUNDING = ("micro_batch", "compile", "channels_last")
"""Settings of :data:`FREE_ON_RESUME` that change the order of sums, and so the last bits of the result."""
OTHER_BITS = "sums are taken in another order, and the run may end with other last bits"


def saved_state(
    out: Path, config: Config, data: str, console: Console, *, force: bool = False
) -> dict[str, Any] | None:
    """The state to resume from; None if there is no checkpoint yet.

    Args:
        out: run folder.
        config: settings of the resumed run.
        data: fingerprints of its splits.
        console: where warnings are printed: of damaged checkpoints, and of what has changed since the run began.
        force: resume even if the data or the settings have changed.
    Raises:
        UserError: without ``force``, if the data have changed, or a setting that changes what the run learns.
    """
    found = load_state(out / CHECKPOINTS) if (out / CHECKPOINTS).is_dir() else None
    if found is None:
        console.print(f"no checkpoint in {escape(str(out))} yet: starting from the beginning", soft_wrap=True)
        return None
    state, damaged = found
    for message in damaged:
        console.print(f"{message}; using the one before", style="yellow", markup=False, soft_wrap=True)
    changed = changed_settings(state["config"], to_json(config))
    learnt = changed_settings(state["config"], to_json(config), FREE_ON_RESUME)
    differences = [describe_change(name, *values) for name, values in learnt.items()]
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
            warn(console, f"{describe_change(name, *changed[name])}; {OTHER_BITS}")
    return state


def _require_steps(
    out: Path, state: dict[str, Any], config: Config, learnt: Collection[str], differences: list[str]
) -> None:
    """Raise UserError if data or settings have changed and no step is left that could use them."""
    done = state["iteration"]
    if not differences or not has_ended(done, Best(**state["best"]), config):
        return
    if done < config.max_iters:
        raise UserError(
            f"--resume {out}: has ended after {done} iterations, without a better AP in {config.patience} "
            f"evaluations, and {differences[0]}: that would train nothing; give a larger --patience, or eval or "
            "export the run as it is"
        )
    if "max_iters" not in learnt and not (out / MODEL).is_file():
        return  # stopped in its last evaluation, before its weights were written
    why = f"has done {done} iterations, and --max-iters is {config.max_iters}: there is none left"
    if "max_iters" not in learnt:
        why = f"has ended after {done} iterations, and {differences[0]}: that would train nothing"
    raise UserError(f"--resume {out}: {why}; give a larger --max-iters, or eval or export the run as it is")


def is_trained_and_exported(out: Path, state: dict[str, Any], config: Config) -> bool:
    """Whether a run with the newest state ``state`` has done its last step and exported its detector.

    If a test-time setting has changed, the run is not finished: the exported file must get the new value.
    """
    changed = set(changed_settings(state["config"], to_json(config))) - set(HOW_IT_RUNS)
    ended = has_ended(state["iteration"], Best(**state["best"]), config)
    return ended and not changed and (out / MODEL).is_file()


def describe_change(name: str, was: object, now: object) -> str:
    """A setting with its value before and now, for a message."""
    return f"{name} was {shown(was)} and is now {shown(now)}"


def changed_settings(
    was: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Settings whose values differ, with both values; ``auto`` differs from none that it may stand for.

    Args:
        was, now: two configurations in JSON types.
        free: settings to leave out; ``micro_batch`` is never left out with a pooled loss, for which ``auto`` is at
            most :data:`drloss.training.device.FEW`, and ``eval_every`` never with a patience.
    """
    before, after = _flat(was), _flat(now)
    free = set(free) - ({"micro_batch"} if is_pooled(now["loss"]) else set())
    free -= {"eval_every"} if before["patience"] and after["patience"] else set()
    differing = {k: (before.get(k), v) for k, v in after.items() if before.get(k) != v and k not in free}
    own = ("precision", *AUTO)

    def may_be_the_same(name: str, pair: tuple[Any, Any]) -> bool:
        if name not in own or "auto" not in pair:
            return False
        return name != "micro_batch" or not is_pooled(now["loss"]) or {*pair} <= {"auto", *range(1, FEW + 1)}

    return {name: pair for name, pair in differing.items() if not may_be_the_same(name, pair)}


def _flat(plain: dict[str, Any]) -> dict[str, Any]:
    """A configuration in JSON types with the detector's settings beside the others."""
    detector: dict[str, Any] = plain["detector"]
    later = {name: list(v) if isinstance(v, tuple) else v for name, v in later_settings().items()}
    return later | {k: v for k, v in plain.items() if k != "detector"} | detector
