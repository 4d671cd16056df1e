"""Languages whose every quantity is known exactly, and small models trained on them: the yardstick of estimators."""

from __future__ import annotations

from ._exact_surplus import SurplusTerms
from ._hidden_markov import HiddenMarkovLanguage
from ._language_model import Checkpoint, TrainedLanguageModel, train_language_model
from ._languages import (
    copy_language,
    cycle,
    echo,
    even_process,
    golden_mean,
    markov_chain,
    memoryless,
    mess3,
    periodic,
    random_language,
    ready_made,
)

__all__ = [
    "Checkpoint",
    "HiddenMarkovLanguage",
    "SurplusTerms",
    "TrainedLanguageModel",
    "copy_language",
    "cycle",
    "echo",
    "even_process",
    "golden_mean",
    "markov_chain",
    "memoryless",
    "mess3",
    "periodic",
    "random_language",
    "ready_made",
    "train_language_model",
]
