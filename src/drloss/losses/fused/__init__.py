"""The loss at the memory's speed: one read of the logits forward, one read and one write backward.

For each image and sign a backend adds up three sums over the candidates, and ``rules`` computes the loss from them:
the formulas are there. A backend is one file: ``cpu`` (``kernels.c``, compiled on the user's machine), ``triton``
with ``triton_kernels`` (CUDA) and ``chunked`` (plain torch, everywhere); ``backends`` chooses one. ``layout`` says
where the candidates are in memory, ``operators`` makes the backends operators of torch, and ``loss`` makes them
differentiable. None is the definition, which is :mod:`drloss.losses.ranking`. Only the losses import this package.
"""
