"""Whether looking at a tensor's values holds up the device that computes them.

On a CPU it costs nothing, and what is seen may save work; elsewhere the host would wait for all that was asked of the
device before. Whoever branches on values in a loop asks here first, so that tests can show what a GPU would be asked.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["readable"]


def readable(values: Tensor) -> bool:
    """Whether the values can be looked at for free."""
    return values.device.type == "cpu"
