"""The networks; importing this package registers them."""

from model.backbones import conv3d_mamba, fusion_net, uncrtaints, unet, utae

__all__ = ["conv3d_mamba", "fusion_net", "uncrtaints", "unet", "utae"]
