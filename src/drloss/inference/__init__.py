"""A trained detector at work.

``evaluate.py`` is ``drloss eval``: it evaluates a detector on a split and writes metrics, results and plots.
``predict.py`` is ``drloss predict``: it detects objects in pictures and draws them.

The rooms listed after it in CONTRIBUTING.md may import it: ``studies`` and ``cli``.
"""
