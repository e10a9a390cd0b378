"""Options that several commands share, and what is made of them."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drloss.errors import UserError

if TYPE_CHECKING:
    from drloss.training.config import Config

USER_ERROR = 2
INTERRUPTED = 130

Command = Callable[[argparse.Namespace], int]
"""What runs a command, given its options, and returns the exit code."""


def data_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--data",
        required=required,
        help="shapes (generated; shapes:size=128,train=1024,...), a COCO, VOC or YOLO folder, or a .toml file",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="read every image first; leave bad boxes and images out and list them"
    )


def device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")


def settings_options(parser: argparse.ArgumentParser, *, without: Sequence[str] = ()) -> None:
    from drloss.training.config import OPTIONS

    settings = parser.add_argument_group("settings", "each replaces the preset's value; lists with commas")
    for name, kind in OPTIONS.items():
        if name in without:
            continue
        flag = "--" + name.replace("_", "-")
        if kind is bool:
            settings.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            settings.add_argument(flag, metavar=_metavar(kind))


def _metavar(kind: Any) -> str:
    return {int: "INT", float: "NUMBER", str: "NAME"}.get(kind, "LIST")


def configuration(options: argparse.Namespace) -> "Config":
    from drloss.training.config import override
    from drloss.training.presets import PRESETS

    return override(PRESETS[options.preset], settings(options))


def settings(options: argparse.Namespace) -> dict[str, object]:
    """The settings that were given, by name."""
    from drloss.training.config import OPTIONS, parse_value

    given = {name: getattr(options, name, None) for name in OPTIONS}
    return {n: parse_value(n, v) if isinstance(v, str) else v for n, v in given.items() if v is not None}


def read(source: Any, split: str, skip_bad: bool, ranks: Any = None) -> tuple[Any, Any]:
    """A split, and the report of what is left out of it.

    Other processes of ``ranks`` are told now and then that this one is still reading images.
    """
    from drloss.data.checks.images import check_images, require_images

    def going_on(done: int, total: int) -> None:
        if ranks is not None and done % 500 == 0:
            ranks.at("checking images", slow=True)

    annotations, report = source.read(split, strict=not skip_bad)
    if skip_bad:
        return check_images(annotations, report, strict=False, progress=going_on)
    return require_images(annotations, report, progress=going_on)


def tell(report: Any, path: Path, console: Any) -> None:
    """Print what a split was read without, if anything; ``path`` is where all of it will stand."""
    if report.problems:
        console.print(report.text(path), markup=False, soft_wrap=True)


def report_name(split: str) -> str:
    return f"data_{split}.json"


def at_least(option: str, value: int, least: int) -> int:
    if value < least:
        raise UserError(f"{option} must be at least {least}, got {value}")
    return value


def share(option: str, value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{option} must lie in 0..1, got {value}")
    return value
