r"""Surrogates ℓ(z) of a ranking error, where z is the violation of the margin: the hinge and its smooth variants.

All three are 0 or nearly 0 where the margin is kept ($z \ll 0$), and z where it is violated by far. Figure 3 draws
them; Table 2 compares detectors trained with them.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from drloss.losses.parameters import require_choice, require_positive

SURROGATES = ("logistic", "quadratic", "hinge")


def hinge(z: Tensor) -> Tensor:
    r"""Hinge $\ell_{\mathrm{hinge}}(z) = [z]_+$, with slope 0 at $z = 0$.

    Paper: §3.1, the loss of Eq. (3); "Hinge" in Table 2.

    Args:
        z: margin violation, any shape, in score units.
    Returns:
        Tensor like ``z``, in score units.

    >>> import torch
    >>> hinge(torch.tensor([-1.0, 0.0, 0.5]))
    tensor([0.0000, 0.0000, 0.5000])
    """
    return functional.relu(z)


def quadratic(z: Tensor, *, rho: float) -> Tensor:
    r"""Quadratic surrogate: $z$ for $z \geq \rho$, $(z + \rho)^2 / 4\rho$ for $-\rho < z < \rho$, 0 below.

    Paper: Eq. (7), §3.2; ρ = 0.5 is the better of the two in Table 2. It is above the hinge by at most ρ/4, at z = 0,
    and its slope is continuous.

    Args:
        z: margin violation, any shape, in score units.
        rho: ρ > 0, in score units.
    Returns:
        Tensor like ``z``, in score units.
    Raises:
        ValueError: if ``rho`` is not positive and finite.

    The square is that of z clamped to [-ρ, ρ], so that it cannot overflow. At $z = \rho$, where training with the
    paper's margin starts for ρ = 0.5, the slope is 1 from both sides.

    >>> import torch
    >>> quadratic(torch.tensor([-0.5, 0.0, 0.5, 2.0]), rho=0.5)
    tensor([0.0000, 0.1250, 0.5000, 2.0000])
    """
    require_positive(rho=rho)
    return torch.where(z >= rho, z, ((z.clamp(-rho, rho) / rho + 1) / 2) ** 2 * rho)


def logistic(z: Tensor, *, smoothness: float) -> Tensor:
    r"""Logistic surrogate $\ell_{\mathrm{logistic}}(z) = \frac{1}{L}\log(1 + \exp(Lz))$.

    Paper: Eq. (8), §3.2; L = 6 is the best of Table 2. It is above the hinge $[z]_+$ by at most
    $\log(2)/L$, at z = 0.

    Args:
        z: margin violation, any shape, in score units.
        smoothness: L > 0, in 1/score units.
    Returns:
        Tensor like ``z``, in score units.
    Raises:
        ValueError: if ``smoothness`` is not positive and finite.

    Computed as -log sigmoid(-Lz)/L, which is equal and never overflows. The printed form overflows in half precision
    from Lz = 11 on, and torch's softplus becomes linear, 2e-9 off, from Lz = 20 on.

    >>> import torch
    >>> logistic(torch.tensor([0.0, 0.5, 1000.0]), smoothness=6.0)
    tensor([1.1552e-01, 5.0810e-01, 1.0000e+03])
    """
    require_positive(smoothness=smoothness)
    smoothness = min(smoothness, 1e30)  # float32 ends at 1e38
    return -functional.logsigmoid(-smoothness * z) / smoothness


def choose_surrogate(name: str, *, smoothness: float, rho: float) -> Callable[[Tensor], Tensor]:
    """The surrogate of that name as a function of z alone.

    Raises:
        ValueError: if the name is unknown or a parameter is not positive and finite.
    """
    require_choice("surrogate", name, SURROGATES)
    require_positive(smoothness=smoothness, rho=rho)
    if name == "logistic":
        return partial(logistic, smoothness=smoothness)
    return partial(quadratic, rho=rho) if name == "quadratic" else hinge


def surrogate_slope(name: str, *, smoothness: float, rho: float) -> Callable[[Tensor], Tensor]:
    r"""Derivative of :func:`choose_surrogate`'s function: for the logistic, $1/(1 + e^{-Lz})$; see Appendix A."""
    if name == "logistic":
        return lambda z: (smoothness * z).sigmoid()
    if name == "quadratic":
        return lambda z: ((z + rho) / (2 * rho)).clamp(0, 1)
    return lambda z: (z > 0).to(z.dtype)
