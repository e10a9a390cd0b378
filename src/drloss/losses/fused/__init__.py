"""The loss at the memory's speed: one read of the logits forward, one read and one write backward.

Of all candidates the DR loss needs three sums for each image and sign (:mod:`drloss.losses.fused.op`); what comes
after them is arithmetic on N numbers. Each backend computes these sums and their gradient in one file of its own:
``cpu`` (C, compiled on the user's machine), ``triton`` (CUDA) and ``chunked`` (plain torch, everywhere). None is the
definition, which is :mod:`drloss.losses.ranking`.
"""
