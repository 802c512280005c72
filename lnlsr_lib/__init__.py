"""Learning with noisy labels via sparse regularisation: losses, noise, models, trainer.

An executable companion to Zhou, Liu, Wang, Zhai, Jiang and Ji, ICCV 2021 (arXiv 2108.00192).
"""

from importlib.metadata import version

from lnlsr_lib.losses import CrossEntropy, FocalLoss, GeneralizedCrossEntropy
from lnlsr_lib.regularization import SparseRegularization, critical_weight

__all__ = [
    "CrossEntropy",
    "FocalLoss",
    "GeneralizedCrossEntropy",
    "SparseRegularization",
    "__version__",
    "critical_weight",
]
__version__ = version("lnlsr")
