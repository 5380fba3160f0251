"""Names of the scores that the weights alone do not tell, by what they need."""

from __future__ import annotations

RECONSTRUCTION = "reconstruction"
"""The default where there are calibration inputs."""

CALIBRATED = ("wanda", "flap", "energy", RECONSTRUCTION)
"""Need calibration inputs; see ``exporter.calibration.scores``."""

GRADIENTS = ("gradient", "taylor", "fisher")
"""Changes of the loss, told by its derivatives; need torch too."""

FLOW = "grasp"
"""What a unit does for the flow of gradients through a network that is not trained yet; needs torch too."""

MASKS = ("l1-mask", "l0-mask", "topk-mask")
"""Gates that are trained while their cost is pushed to the budget; need torch too."""

LEARNED = (*GRADIENTS, FLOW, *MASKS)
"""See ``exporter.learned``."""
