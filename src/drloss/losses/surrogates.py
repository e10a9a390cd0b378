r"""Surrogates ℓ(z) of the ranking hinge, where z is the violation of the margin."""

from torch import Tensor
from torch.nn import functional

from drloss.losses.candidates import require_positive


def logistic(z: Tensor, *, smoothness: float) -> Tensor:
    r"""Logistic surrogate $\ell_{\mathrm{logistic}}(z) = \frac{1}{L}\log(1 + \exp(Lz))$.

    Paper: Eq. (8), §3.2; L = 6 is the best of Table 2. It lies above the hinge $[z]_+$ by at most
    $\log(2)/L$, which it is at z = 0.

    Args:
        z: margin violation $\hat P_- - \hat P_+ + \gamma$, any shape, in score units.
        smoothness: L > 0, in 1/score units.
    Returns:
        Tensor like ``z``, in score units.
    Raises:
        ValueError: if ``smoothness`` is not positive and finite.

    Computed as -log sigmoid(-Lz)/L, which is the same and never overflows: the printed form does in half precision
    from Lz = 11, and torch's softplus turns linear, 2e-9 off, from Lz = 20.

    >>> import torch
    >>> logistic(torch.tensor([0.0, 0.5, 1000.0]), smoothness=6.0)
    tensor([1.1552e-01, 5.0810e-01, 1.0000e+03])
    """
    require_positive(smoothness=smoothness)
    return -functional.logsigmoid(-smoothness * z) / smoothness
