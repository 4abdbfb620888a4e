"""From stored values to reflectance and backscatter."""
