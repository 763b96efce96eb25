"""Rigorous bounds of the L2 Lipschitz constant of single operations: one function per kind of operation.

Each takes what torch's operation takes, with the size of its input, and returns a `Bound`: a proved upper bound and a
witnessed lower bound of the constant of the operation as a function of real numbers, computed in float64 whatever the
dtype of the weights is. Biases do not matter. Arguments that make no operation raise `InputError`.
"""

from .axes import (
    adaptive_average_pooling,
    average_pooling,
    interpolation,
    interpolation_per_pixel,
    max_pooling,
    padding,
)
from .bound import Bound
from .convolutions import convolution, transposed_convolution
from .pointwise import ACTIVATIONS, activation, batch_norm, normalisation, scaling
from .spectral import matrix as linear

__all__ = [
    "ACTIVATIONS",
    "Bound",
    "activation",
    "adaptive_average_pooling",
    "average_pooling",
    "batch_norm",
    "convolution",
    "interpolation",
    "interpolation_per_pixel",
    "linear",
    "max_pooling",
    "normalisation",
    "padding",
    "scaling",
    "transposed_convolution",
]
