"""What a language model's hidden states know: entropies, calibration and information of its Markov kernels."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from . import errors, typing
from ._bootstrap import Estimate
from ._divergences import KL, ChiSquared, JensenShannon, Renyi, SquaredHellinger, TotalVariation
from ._ext import build_info
from ._features import IGNORED_TARGET, Features
from ._nll import NLL, nll
from ._panels import adjoint_product, normal_product, panel_product, prototypes
from ._profile import LayerCurves, Profile, TokenTable, profile
from ._softmax import SoftmaxKernel, SoftmaxStats, divergence, mean_prediction, softmax_stats

if TYPE_CHECKING:
    from ._extract import Head, extract

try:
    __version__ = version("markovlm")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

__all__ = [
    "IGNORED_TARGET",
    "KL",
    "NLL",
    "ChiSquared",
    "Estimate",
    "Features",
    "Head",
    "JensenShannon",
    "LayerCurves",
    "Profile",
    "Renyi",
    "SoftmaxKernel",
    "SoftmaxStats",
    "SquaredHellinger",
    "TokenTable",
    "TotalVariation",
    "__version__",
    "adjoint_product",
    "build_info",
    "divergence",
    "errors",
    "extract",
    "mean_prediction",
    "nll",
    "normal_product",
    "panel_product",
    "profile",
    "prototypes",
    "softmax_stats",
    "typing",
]


def __getattr__(name: str) -> Any:
    # Extraction is what needs torch; importing its module only when it is used keeps `import markovlm` light.
    if name in ("extract", "Head"):
        from . import _extract

        return getattr(_extract, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
