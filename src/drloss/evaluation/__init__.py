"""Detections compared with the truth, in numbers and pictures.

``detecting.py`` runs a detector over a split, at one scale or at several. ``coco.py`` computes COCO's AP,
``thresholds.py`` the AP at each score threshold, and the threshold with the best F1; ``densities.py`` the densities
of scores, ``matching.py`` which detections are right, ``mistakes.py`` what is wrong with the others and what is
missed, ``limits.py`` whether images are full of detections. ``plotting.py`` is how figures look,
``figures.py`` has the figures, ``drawing.py`` draws boxes on images.

The rooms listed after it in CONTRIBUTING.md may import it: ``training``, ``inference``, ``studies`` and ``cli``.
"""
