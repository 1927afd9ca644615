"""Intervals, paired tests and honest selection: pure functions on arrays."""

from pipeline.stats.auroc import DeLong, PairedAUROC, auroc_interval, delong, paired_delong
from pipeline.stats.bootstrap import (
    bootstrap_interval,
    bootstrap_values,
    paired_bootstrap,
    patient_blocks,
)
from pipeline.stats.confidence_set import ConfidenceSet, confidence_set
from pipeline.stats.intervals import (
    Interval,
    newcombe_paired,
    patient_draws,
    percentile_interval,
    weighted_auroc,
    weighted_mean,
    weighted_ratio,
    wilson,
)
from pipeline.stats.paired import (
    ROPE,
    McNemar,
    Posterior,
    correlated_t,
    holm,
    mcnemar,
    nadeau_bengio,
    sign_flip,
    verdict,
)
from pipeline.stats.seeds import probability_better, two_way_interval
from pipeline.stats.selection import HonestBest, honest_best, honest_best_by
from pipeline.stats.weighted import (
    WEIGHTED,
    weighted_average_precision,
    weighted_difference,
    weighted_ece,
)

__all__ = [
    "ROPE",
    "WEIGHTED",
    "ConfidenceSet",
    "DeLong",
    "HonestBest",
    "Interval",
    "McNemar",
    "PairedAUROC",
    "Posterior",
    "auroc_interval",
    "bootstrap_interval",
    "bootstrap_values",
    "confidence_set",
    "correlated_t",
    "delong",
    "holm",
    "honest_best",
    "honest_best_by",
    "mcnemar",
    "nadeau_bengio",
    "newcombe_paired",
    "paired_bootstrap",
    "paired_delong",
    "patient_blocks",
    "patient_draws",
    "percentile_interval",
    "probability_better",
    "sign_flip",
    "two_way_interval",
    "verdict",
    "weighted_auroc",
    "weighted_average_precision",
    "weighted_difference",
    "weighted_ece",
    "weighted_mean",
    "weighted_ratio",
    "wilson",
]
