"""Image files: from bytes to pixels.

``decoding`` reads an image by stated rules; ``jpeg`` and ``png`` find damage that Pillow passes over; ``endings``
looks at a file's first and last bytes only. Everything in ``data`` may import these; they import only
:mod:`drloss.errors`.
"""
