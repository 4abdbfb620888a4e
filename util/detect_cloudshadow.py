"""Published path of the threshold rules, see `data.clouds.threshold_rules`."""

from data.clouds.threshold_rules import get_cloud_mask as get_cloud_mask
from data.clouds.threshold_rules import get_shadow_mask as get_shadow_mask
