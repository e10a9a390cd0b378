"""Options that several commands share, and what their values mean."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from drloss.errors import UserError, first_line, nearest
from drloss.training.config import AUTO, GROUPS, OPTIONS, Config, descriptions, flat, from_json, override, parse_value
from drloss.training.presets import PRESETS

USER_ERROR = 2
INTERRUPTED = 130

Command = Callable[[argparse.Namespace], int]
"""Runs a command with its options and returns the exit code."""


def data_options(parser: argparse.ArgumentParser, *, required: bool = True) -> argparse._ArgumentGroup:
    """The group ``data`` with ``--data`` and ``--skip-bad``."""
    group = parser.add_argument_group("data")
    kinds = (
        "folder of a data set (COCO, VOC, YOLO, CSV, LabelMe, CreateML, CVAT or Hugging Face imagefolder), one of "
        "its annotation files, a .toml data file, or shapes (generated; shapes:size=128,train=1024,...)"
    )
    group.add_argument("--data", required=required, help=kinds if required else f"{kinds} (default: shapes)")
    group.add_argument("--follow-links", action="store_true", help="take links that lead out of the data set")
    group.add_argument(
        "--skip-bad", action="store_true", help="read every image first; leave bad boxes and images out and list them"
    )
    return group


def split_options(group: argparse._ActionsContainer, *, val_default: str | None) -> None:
    """``--train-split`` and ``--val-split``."""
    group.add_argument("--train-split", default="train", metavar="SPLIT", help="split to train on (default: train)")
    words = "split to evaluate on; none for no evaluation (default: val)"
    group.add_argument("--val-split", default=val_default, metavar="SPLIT", help=words)
    share = "of data without a split val, hold out this share of the images (default: a fifth)"
    group.add_argument("--val-fraction", type=float, metavar="SHARE", help=share)


def data_choice(options: argparse.Namespace) -> Any:
    """Which images the options of :func:`data_options` and :func:`split_options` name."""
    from drloss.inference.reading import DataChoice

    return DataChoice(
        options.data,
        train_split=options.train_split,
        val_split=options.val_split,
        val_fraction=options.val_fraction,
        skip_bad=options.skip_bad,
    )


def data_arguments(options: argparse.Namespace) -> list[str]:
    """The options of :func:`data_options`, but ``--skip-bad``, as another command takes them."""
    fraction = [] if options.val_fraction is None else ["--val-fraction", str(options.val_fraction)]
    return ["--data", options.data, *(["--follow-links"] if options.follow_links else []), *fraction]


def older_name(group: argparse._ActionsContainer, name: str, shown: str, **how: Any) -> None:
    """Accept the older name of an option, which ``--help`` does not show."""
    dest = shown.removeprefix("--").replace("-", "_")
    group.add_argument(name, dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **how)


def device_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")


DEFAULT_PRESET = "laptop; cpu for the generated data"
"""What :func:`drloss.training.presets.default_preset` gives, in words."""


def preset_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--preset NAME`` or ``--config FILE``; one of them is required unless a default stands in."""
    which = parser.add_argument_group("where settings start from")
    either = which.add_mutually_exclusive_group(required=required)
    words = f"{', '.join(PRESETS)}" + ("" if required else f" (default: {DEFAULT_PRESET})")
    either.add_argument("--preset", type=preset_name, metavar="NAME", help=words)
    either.add_argument(
        "--config", type=Path, metavar="FILE.json", help="a run's config.json, or what drloss config prints"
    )


def preset_name(name: str) -> str:
    """The name of a preset, for argparse."""
    if name not in PRESETS:
        meant = nearest(name, PRESETS)
        raise argparse.ArgumentTypeError(f"invalid choice: {name!r}{meant} (choose from {', '.join(PRESETS)})")
    return name


def settings_options(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    *,
    default: str | None = None,
    without: Sequence[str] = (),
) -> None:
    """An option for each setting, in groups. ``--help`` shows its description and its value in the chosen preset."""
    chosen = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    chosen.add_argument("--preset", default=default)
    known, _ = chosen.parse_known_args(arguments) if "-h" in arguments or "--help" in arguments else (None, None)
    preset = PRESETS.get(known.preset) if known is not None and known.preset else None
    values = flat(preset) if preset else {}
    texts = descriptions() if known is not None else {}
    for group, names in GROUPS.items():
        words = f"each replaces the value of {known.preset if preset else 'the preset'}" if known else None
        shown = [name for name in names if name not in without]
        if not shown:
            continue
        section = parser.add_argument_group(f"settings: {group}", words)
        for name in shown:
            flag, kind = "--" + name.replace("_", "-"), OPTIONS[name]
            help_ = (texts.get(name, "") + _stands(values.get(name))).replace("%", "%%")
            if kind is bool:
                section.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=help_)
            else:
                metavar = "NAME|FILE" if name == "weights" else _metavar(kind) + ("|auto" if name in AUTO else "")
                section.add_argument(flag, metavar=metavar, help=help_)


def _stands(value: object) -> str:
    """The value of a preset, as it follows a description in ``--help``."""
    if value is None:
        return ""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if type(value) is float else value
    return f" [{shown}]"


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple:
        return f"{_metavar(get_args(kind)[0])},..."
    return {int: "INT", float: "NUMBER"}.get(kind, "NAME")


def configuration(options: argparse.Namespace) -> Config:
    """The configuration of ``--preset`` or ``--config``, with the given settings replaced."""
    return override(
        PRESETS[options.preset] if options.config is None else read_config(options.config), settings(options)
    )


def read_config(path: Path) -> Config:
    """The configuration in a JSON file.

    Raises:
        UserError: if the file cannot be read or holds no configuration.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: must be JSON: {first_line(error)}") from None
    return from_json(plain, f"--config {path}")


def settings(options: argparse.Namespace) -> dict[str, object]:
    """The settings that were given, by name."""
    given = {name: getattr(options, name, None) for name in OPTIONS}
    return {n: parse_value(n, v) if isinstance(v, str) else v for n, v in given.items() if v is not None}


def at_least(option: str, value: int, least: int) -> int:
    if value < least:
        raise UserError(f"{option} must be at least {least}, got {value}")
    return value


def require_share(option: str, value: float | None) -> float | None:
    """The value of an option; raises UserError if it is given and not within 0..1."""
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{option} must lie in 0..1, got {value}")
    return value
