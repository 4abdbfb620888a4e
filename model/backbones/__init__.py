"""The networks; importing this package registers them."""

from model.backbones import uncrtaints

__all__ = ["uncrtaints"]
