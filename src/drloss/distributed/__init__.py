"""One process or several under ``torchrun``.

``ranks`` (joining, sums and means over processes, waiting), ``watchdog`` (finding a process that is dead or stalled).

``evaluation``, ``training``, ``inference``, ``studies`` and ``cli`` import this room. It imports only ``errors``.
"""
