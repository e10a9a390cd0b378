"""Data sets, their checks, and the batches of training and evaluation.

``source`` is a data set with splits, ``annotations`` one split in memory. ``formats`` reads them with ``files`` and
``images``. ``checks`` holds what can be wrong; ``inspection`` is ``drloss data``. ``order`` chooses the images
of a batch, ``transforms`` resizes them, ``batches`` loads them, ``workers`` does so in other processes.

``evaluation``, ``training``, ``inference``, ``studies`` and ``cli`` import this room. It imports only ``errors``,
``io`` and ``structures``.
"""
