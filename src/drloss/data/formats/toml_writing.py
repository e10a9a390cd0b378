"""Writing a data file that says where a data set is, for whoever wants to change what was recognised."""

import os
from pathlib import Path

from drloss.data.formats.writing import quoted
from drloss.data.source import DataSource, FileSource
from drloss.errors import UserError
from drloss.io.atomic import write_text

_WITH_CLASSES = frozenset({"voc", "yolo"})


def write_data_toml(path: Path, source: DataSource) -> None:
    """Write a data file, :mod:`drloss.data.formats.data_toml`, atomically.

    Args:
        path: the file, which must not exist; paths in it are relative to its folder where they are below it.
        source: a data set on disk.

    Raises:
        UserError: if the file exists, or if the data set has no places on disk.
        DataError: if the data set cannot be read.
    """
    require_new_toml(path)
    if not isinstance(source, FileSource) or source.places is None:
        raise UserError(f"--write {path}: {source.name} is no folder in a known layout, and needs no data file")
    lines = [f"format = {quoted(source.format)}"]
    if source.format in _WITH_CLASSES or (source.format != "coco" and source.class_names is not None):
        lines.append(f"classes = {_texts(_classes(source))}")
    places = source.places()
    for name, setting in source.settings.items():
        lines.append(f"{name} = {quoted(_relative(setting, path.parent)) if isinstance(setting, Path) else setting}")
    root = source.settings.get("root")
    inner = root if isinstance(root, Path) else path.parent
    for split in (s for s in source.splits if s in places):
        keys = places[split]
        lines += ["", f"[splits.{quoted(split)}]"]
        for key, value in keys.items():
            given = value if isinstance(value, str) else [_relative(p, inner) for p in value]
            lines.append(f"{key} = {quoted(given) if isinstance(given, str) else _texts(given)}")
    write_text(path, "\n".join(lines) + "\n")


def require_new_toml(path: Path) -> None:
    """Raise UserError unless ``path`` is the name of a new data file."""
    if path.suffix.lower() != ".toml" or path.exists():
        raise UserError(f"--write {path}: allowed: the name of a .toml file that does not exist")


def _classes(source: FileSource) -> list[str]:
    if source.class_names is not None:
        return list(source.class_names)
    return list(source.read(source.splits[0], strict=False)[0].class_names)


def _relative(path: Path, folder: Path) -> str:
    inner = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    return os.path.abspath(path) if inner.startswith("..") else inner.replace(os.sep, "/")


def _texts(values: list[str]) -> str:
    return f"[{', '.join(map(quoted, values))}]"
