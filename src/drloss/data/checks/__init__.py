"""What can be wrong with data, found record by record.

``problems`` is the record of a problem and the report of a split; ``boxes`` and ``classes`` check numbers, boxes and
class names; ``images`` checks the image files of a split; ``remarks`` says what good data may still not be good for.

``data.formats``, ``data.inspection``, ``training``, ``studies.compare`` and ``cli`` import this package. Of
``data``, it imports ``annotations``, ``files`` and ``images``.
"""
