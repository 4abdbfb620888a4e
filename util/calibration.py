"""Published path of the calibration figures, see `evaluation.calibration`."""

from evaluation.calibration import discard_curve as discard_curve
from evaluation.calibration import uce_auce as uce_auce
