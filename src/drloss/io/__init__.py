"""Reading and writing files safely.

``atomic`` (text, JSON and other files that are complete or not there), ``sealed`` (tensors with a checksum),
``untrusted`` (tensors from files of unknown origin).

``detector``, ``data``, ``evaluation``, ``training``, ``inference``, ``studies`` and ``cli`` import this room. It
imports only ``errors``.
"""
