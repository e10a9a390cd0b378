"""YAML as plain data: dicts, lists and strings, and nothing that could grow or run.

Every scalar is a string as it stands in the file, so that a class named ``no`` or ``1`` keeps its name. Anchors,
aliases and tags are refused, and so are keys given twice.
"""

from pathlib import Path

import yaml

from drloss.data.files.reading import read_text
from drloss.errors import DataError, printable, shown

MAX_BYTES = 1024**2
_MAX_DEPTH = 10

Plain = str | list["Plain"] | dict[str, "Plain"] | None

# libyaml's parser where PyYAML has it, for speed. Either parser only makes events here, and constructs no objects.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Plain]:
    """The mapping in a YAML file.

    Raises:
        DataError: with the line, if the file is not a mapping or contains what is not allowed.
    """
    file = printable(str(path))
    text = read_text(path, MAX_BYTES)
    try:
        value = _document(file, text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f": line {mark.line + 1}" if mark else ""
        raise DataError(f"{file}{where}: not YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not YAML ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(value, dict):
        raise DataError(f"{file}: top level, got {shown(value)}; allowed: keys such as train, val and names")
    return value


def _document(file: str, text: str) -> Plain:
    """The value of the file's only document.

    It is built from the parser's events, because PyYAML's loaders expand aliases and take keys given twice.
    """
    root: list[Plain] = []
    # The lists and dicts that are still open, each with the key whose value comes next, if any.
    stack: list[tuple[list[Plain] | dict[str, Plain], list[str]]] = [(root, [])]
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise DataError(f"{file}: line {line}: an anchor or alias; allowed: plain values")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise DataError(f"{file}: line {line}: a tag, got {shown(tag)}; allowed: plain values")
        if isinstance(event, yaml.DocumentStartEvent) and root:
            raise DataError(f"{file}: line {line}: a second document; allowed: one")
        if isinstance(event, yaml.ScalarEvent):
            null = event.implicit[0] and event.value in ("", "~", "null", "Null", "NULL")
            _put(file, line, stack[-1], None if null else event.value)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            if len(stack) > _MAX_DEPTH:
                raise DataError(f"{file}: line {line}: nested more than {_MAX_DEPTH} deep")
            container: list[Plain] | dict[str, Plain] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            _put(file, line, stack[-1], container)
            stack.append((container, []))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            stack.pop()
    return root[0] if root else None


def _put(file: str, line: int, place: tuple[list[Plain] | dict[str, Plain], list[str]], value: Plain) -> None:
    """Add a value to a list; or to a dict, first as a key and then as its value."""
    container, waiting = place
    if isinstance(container, list):
        container.append(value)
    elif waiting:
        container[waiting.pop()] = value
    elif not isinstance(value, str):
        raise DataError(f"{file}: line {line}: key, got {shown(value)}; allowed: a string")
    elif value in container:
        raise DataError(f"{file}: line {line}: key given twice, got {shown(value)}; allowed: each once")
    else:
        waiting.append(value)
