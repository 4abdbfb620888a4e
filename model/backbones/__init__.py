"""The backbones, one file each; `model.registry` lists them."""
