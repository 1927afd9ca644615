"""Intervals, paired tests and honest selection: pure functions on arrays."""

from pipeline.stats.auroc import DeLong, PairedAUROC, auroc_interval, delong, paired_delong
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
from pipeline.stats.selection import HonestBest, honest_best

__all__ = [
    "ROPE",
    "DeLong",
    "HonestBest",
    "Interval",
    "McNemar",
    "PairedAUROC",
    "Posterior",
    "auroc_interval",
    "correlated_t",
    "delong",
    "holm",
    "honest_best",
    "mcnemar",
    "nadeau_bengio",
    "newcombe_paired",
    "paired_delong",
    "patient_draws",
    "percentile_interval",
    "sign_flip",
    "verdict",
    "weighted_auroc",
    "weighted_mean",
    "weighted_ratio",
    "wilson",
]
