"""Files that somebody else wrote: which may be read, and how.

``paths`` keeps names within the data set's folder and lists folders; ``reading`` reads bytes, text and lines up to
limits; ``yaml`` reads YAML as plain data.

``data.checks``, ``data.formats``, ``data.inspection`` and ``inference`` import this package. It imports only
:mod:`drloss.errors`.
"""
