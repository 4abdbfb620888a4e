"""Published path of the cloud detectors, see `data.clouds.detectors`."""

from data.clouds.detectors import detect_clouds as detect_clouds
