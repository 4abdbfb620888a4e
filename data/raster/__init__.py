"""Images on disk: GeoTIFFs, packs, mosaics of patches."""
