"""The formats of data sets, each read into the same :class:`~drloss.data.annotations.Annotations`.

``opening`` finds the format. ``coco``, ``voc`` and ``yolo`` are the readers and state their rules; their other files
start with the same word. ``shapes`` draws a data set, ``data_toml`` reads data files. ``builder`` checks each record
of a reader. ``writing`` writes the formats.

``data.inspection`` and ``cli`` import this package.
"""
