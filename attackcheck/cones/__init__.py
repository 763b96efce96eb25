"""Networks computed only where one pixel looks: at every layer the part of the image that its logits depend on."""

from attackcheck.cones.cone import Cone, Spot, cone_of

__all__ = ["Cone", "Spot", "cone_of"]
