"""One process or several under ``torchrun``.

``ranks`` (joining, sums and means over processes, waiting), ``watchdog`` (finding a process that is dead or stalled).
The rooms listed after it in CONTRIBUTING.md may import it; it imports only ``errors`` and ``io``.
"""
