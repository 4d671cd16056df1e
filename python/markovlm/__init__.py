"""What a language model's hidden states know: entropies, calibration and information of its Markov kernels."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from . import (
    _softmax_products,  # noqa: F401  registers products
    errors,
    synthetic,
    typing,
)
from ._alignment import alignment
from ._alignment_result import Alignment
from ._audit import Audit, Check, audit
from ._axes import Axis
from ._bootstrap import Estimate, Estimates
from ._channels import Capacity, Garbling, channel_capacity, garbling
from ._coherence import Coherence, temporal_coherence
from ._compare import compare
from ._comparison import Comparison, DepthCurve, Quantity
from ._constructors import coarse_grain, copy, deterministic, discard, identity, state, swap, uniform
from ._dirichlet import dirichlet_energy
from ._divergences import KL, ChiSquared, Divergence, JensenShannon, Renyi, SquaredHellinger, TotalVariation
from ._drafting import DraftHead
from ._enclosing_ball import Ball, smallest_enclosing_ball
from ._ext import build_info
from ._f_divergence import FDivergence
from ._features import IGNORED_TARGET, Features
from ._geometry import Geometry, geometry
from ._information import (
    conditional_mutual_information,
    joint,
    mutual_information,
    representation_divergence,
    state_prediction_information,
)
from ._kernels import Kernel
from ._layer_surplus import LayerSurplus
from ._metric import MetricOperator, mean_metric, metric_operator, sensitivity
from ._modes import Modes, modes
from ._nll import NLL, nll
from ._nll_decomposition import nll_decomposition
from ._nll_terms import NLLCurves, NLLDecomposition
from ._operators import SimilarityOperator
from ._panels import adjoint_product, normal_product, panel_product, prototypes
from ._paths import PathLength, fisher_rao_distance, path_length
from ._profile import LayerCurves, Profile, TokenTable, profile
from ._rowwise import (
    almost_surely_equal,
    average_categorical_entropy,
    average_divergence,
    categorical_entropies,
    categorical_entropy,
    divergence,
    divergences,
    supremum_categorical_entropy,
    supremum_divergence,
)
from ._scores import expected_accepted_length
from ._similarity import similarity_operator
from ._softmax import SoftmaxKernel, SoftmaxStats, mean_prediction, softmax_stats
from ._spectral import Spectrum, eigsh
from ._summaries import SpectralSummary, spectral_summary
from ._surplus import surplus
from ._surplus_result import Surplus
from ._surrogate import quadratic_surrogate
from ._surrogate_result import Assumptions, LinearMaps, Surrogate
from ._svds import SingularSpectrum, svds

if TYPE_CHECKING:
    from ._extract import Head, extract
    from ._speculative import Decoded, speculative_decode

try:
    __version__ = version("markovlm")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

__all__ = [
    "IGNORED_TARGET",
    "KL",
    "NLL",
    "Alignment",
    "Assumptions",
    "Audit",
    "Axis",
    "Ball",
    "Capacity",
    "Check",
    "ChiSquared",
    "Coherence",
    "Comparison",
    "Decoded",
    "DepthCurve",
    "Divergence",
    "DraftHead",
    "Estimate",
    "Estimates",
    "FDivergence",
    "Features",
    "Garbling",
    "Geometry",
    "Head",
    "JensenShannon",
    "Kernel",
    "LayerCurves",
    "LayerSurplus",
    "LinearMaps",
    "MetricOperator",
    "Modes",
    "NLLCurves",
    "NLLDecomposition",
    "PathLength",
    "Profile",
    "Quantity",
    "Renyi",
    "SimilarityOperator",
    "SingularSpectrum",
    "SoftmaxKernel",
    "SoftmaxStats",
    "SpectralSummary",
    "Spectrum",
    "SquaredHellinger",
    "Surplus",
    "Surrogate",
    "TokenTable",
    "TotalVariation",
    "__version__",
    "adjoint_product",
    "alignment",
    "almost_surely_equal",
    "audit",
    "average_categorical_entropy",
    "average_divergence",
    "build_info",
    "categorical_entropies",
    "categorical_entropy",
    "channel_capacity",
    "coarse_grain",
    "compare",
    "conditional_mutual_information",
    "copy",
    "deterministic",
    "dirichlet_energy",
    "discard",
    "divergence",
    "divergences",
    "eigsh",
    "errors",
    "expected_accepted_length",
    "extract",
    "fisher_rao_distance",
    "garbling",
    "geometry",
    "identity",
    "joint",
    "mean_metric",
    "mean_prediction",
    "metric_operator",
    "modes",
    "mutual_information",
    "nll",
    "nll_decomposition",
    "normal_product",
    "panel_product",
    "path_length",
    "profile",
    "prototypes",
    "quadratic_surrogate",
    "representation_divergence",
    "sensitivity",
    "similarity_operator",
    "smallest_enclosing_ball",
    "softmax_stats",
    "spectral_summary",
    "speculative_decode",
    "state",
    "state_prediction_information",
    "supremum_categorical_entropy",
    "supremum_divergence",
    "surplus",
    "svds",
    "swap",
    "synthetic",
    "temporal_coherence",
    "typing",
    "uniform",
]


if not TYPE_CHECKING:  # which knows them by the imports above, and would take any other name for one

    def __getattr__(name: str) -> Any:
        # What runs models needs torch; importing its modules only when they are used keeps `import markovlm` light.
        if name in ("extract", "Head"):
            from . import _extract

            return getattr(_extract, name)
        if name in ("speculative_decode", "Decoded"):
            from . import _speculative

            return getattr(_speculative, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
