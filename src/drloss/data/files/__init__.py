"""Files that somebody else wrote: which may be read, and how.

``paths`` keeps names within the data set's folder and lists folders; ``reading`` reads bytes, text and lines up to
limits; ``yaml`` reads YAML as plain data. Everything in ``data`` may import these; they import only
:mod:`drloss.errors`.
"""
