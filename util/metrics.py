"""Published path of the image metrics, see `evaluation.image_metrics`."""

from evaluation.image_metrics import image_metrics as image_metrics
