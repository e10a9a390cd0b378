"""Image files: from bytes to pixels.

``decoding`` reads an image by stated rules. ``jpeg_checks`` and ``png_checks`` find damage that Pillow passes over.
``endings`` looks at a file's first and last bytes only.

``data.checks``, ``data.formats``, ``data.annotations`` and ``inference`` import this package. It imports only
:mod:`drloss.errors`.
"""
