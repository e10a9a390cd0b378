"""VOC's XML files, read so that nothing in them can grow or lead elsewhere.

defusedxml refuses a DOCTYPE as well, but knows no limit on nesting, so that the tree builder here would stay.
"""

from pathlib import Path
from xml.etree import ElementTree

from drloss.data.files.reading import Limit, read_bytes
from drloss.errors import DataError, printable, shown

MAX_BYTES = 10 * 1024**2
MAX_DEPTH = 32
LIMITS = {b"<": Limit(500_000), b"=": Limit(100_000)}
"""Largest number of tags and of attributes in a file."""


def parse_xml(path: Path) -> ElementTree.Element:
    """The root ``<annotation>`` of an XML file, with names without their namespaces.

    Raises:
        DataError: if the file is not such XML, is too large, is nested too deeply, or has a DOCTYPE.
    """
    data = read_bytes(path, MAX_BYTES, LIMITS)
    parser = ElementTree.XMLParser(target=_Guarded())
    try:
        parser.feed(data)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, DataError, ValueError, LookupError) as error:
        raise xml_error(path, error) from None
    if root.tag != "annotation":
        raise DataError(f"{printable(str(path))}: root element, got {shown(root.tag)}; allowed: annotation")
    return root


def xml_error(path: Path, error: Exception) -> DataError:
    """The error of parsing an XML file, with the file's name and the place in it."""
    name = printable(str(path))
    if isinstance(error, ElementTree.ParseError):
        line, column = error.position
        reason = "" if str(error).startswith("undefined entity") else f" ({str(error).partition(':')[0]})"
        return DataError(f"{name}: line {line}, column {column + 1}: not well-formed XML{reason}")
    if isinstance(error, DataError):
        return DataError(f"{name}: {error}")
    return DataError(f"{name}: cannot be read as XML ({error})")


class _Guarded(ElementTree.TreeBuilder):
    """Builds the tree; raises at a DOCTYPE and at deep nesting."""

    depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise DataError(f"elements nested more than {MAX_DEPTH} deep")
        return super().start(tag.rpartition("}")[2], attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag.rpartition("}")[2])

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError("a DOCTYPE, which may define entities; allowed: plain elements")


def text_at(element: ElementTree.Element, path: str) -> str | None:
    """The text of the first element at ``path``, without blanks around it; None if there is no such element."""
    text = element.findtext(path)
    return None if text is None else text.strip()
