"""A trained detector at work.

``detector.py`` is :class:`Detector`, a trained detector in a program; ``images.py`` and ``results.py`` are what goes
in and what comes out.
``reading.py`` goes from the name of a data set to its splits, and ``fitting.py`` trains on them: ``drloss train``.
``evaluate.py`` is ``drloss eval``: it evaluates a detector on a split and writes metrics, results and plots.
``predict.py`` is ``drloss predict``, with the folder ``predicting``; ``views.py`` are the tiles of large images.
``export.py`` is ``drloss export``, ``speed.py`` ``drloss benchmark``.

The rooms listed after it in CONTRIBUTING.md may import it: ``studies`` and ``cli``.
"""
