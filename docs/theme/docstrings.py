"""The docstrings of drloss as mkdocstrings wants them: a griffe extension, named in mkdocs.yml."""

import re

from griffe import Attribute, Extension, Function, Object

SECTION = re.compile(r"(?<=[^\n])\n(?=(?:Args|Attributes|Returns|Yields|Raises):\n)")
"""Where a section begins without a blank line above it."""
EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)
"""A doctest, up to a blank line."""


class Docstrings(Extension):
    """Sections apart from each other, doctests as code, and defaults as values in place of the names of constants."""

    def on_instance(self, *, obj: Object, **event: object) -> None:
        if obj.docstring:
            text = SECTION.sub("\n\n", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(lambda match: f"```pycon\n{match.group()}\n```", text)

    def on_function_instance(self, *, func: Function, **event: object) -> None:
        for parameter in func.parameters:
            constant = func.module.members.get(str(parameter.default))
            if isinstance(constant, Attribute) and constant.value is not None:
                parameter.default = str(constant.value)
