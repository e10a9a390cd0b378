"""A stand-in for detectron2, which no registry has: what its dense detectors hand to ``losses``, and no more.

Documented there: logits a list of levels (N, A, K), ``gt_labels`` an image (A,) over all levels with -1 for neither
and K for background, a running mean of the number of positives that divides the losses, and the losses' names.
"""
