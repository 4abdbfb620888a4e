"""The networks; importing this package registers them."""

from model.backbones import uncrtaints, unet, utae

__all__ = ["uncrtaints", "unet", "utae"]
