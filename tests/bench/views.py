"""Do views or layers of a frozen network close the gap to fine-tuning it?

    python -m tests.bench.views --study study.toml [--views 8] [--head linear]

One head on the last features, on fixed augmented views of them, on each layer and on all of
them, beside the networks that `headrace finetune` trained for the study; accuracy and AUROC of
each domain with 95 % intervals by patient, and differences from the plain head and from the
first fine-tuned network. Features that the store lacks are computed.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.compare import CompareOptions, compare
from pipeline.data.domain import DomainData
from pipeline.data.samples import load_samples
from pipeline.errors import MissingResultsError
from pipeline.evaluation.compare_heads import compare_heads, eval_sets, score_heads
from pipeline.evaluation.metrics import Proba
from pipeline.evaluation.paired_tests import Difference
from pipeline.evaluation.predictions import (
    PROBABILITIES,
    TRAINED_PROBABILITIES,
    Predictions,
    read_predictions,
)
from pipeline.features.backbones import BACKBONES
from pipeline.features.extract import extract
from pipeline.study import AT, Study
from pipeline.study_file import load_study
from pipeline.words import counted
from tests.bench import heading, row


def main(arguments: Sequence[str] | None = None) -> None:
    """Extract and fit what is missing, then print a table for each domain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--head", default="linear")
    options = parser.parse_args(arguments)
    study = load_study(options.study)
    network = study.backbones[0].network
    study = replace(study, backbones=(network,), concatenations=())
    by_key = {
        name: dict(zip(map(bytes, stored.key), stored.proba[predictor], strict=True))
        for name, stored, predictor in _predictions(study, options.views, options.head)
    }
    samples, _ = load_samples(study)
    for data in eval_sets(samples):
        if data.row is not None:
            keys = [samples.key[row] for row in data.row]
            _print(data, {n: np.stack([p[key] for key in keys]) for n, p in by_key.items()})


def _predictions(
    study: Study, views: int, head: str
) -> Iterator[tuple[str, Predictions, tuple[str, int]]]:
    """What each variant of the first backbone says of all images, plain first."""
    (network,) = study.backbones
    several = replace(network, views=views)
    layers = [
        replace(network, name=f"{network.name}{AT}{x}") for x in BACKBONES[network.name].layers
    ]
    studies = {
        "": study,
        f", {counted(views, 'view')}": replace(study, backbones=(several,)),
        ", layer": replace(
            study,
            backbones=tuple(layers),
            concatenations=("+".join(layer.name for layer in layers),),
        ),
    }
    for number, (suffix, variant) in enumerate(studies.items()):
        written = replace(variant, name=f"{study.name}-variant{number}")
        extract(written)
        compare(written, CompareOptions(heads=(head,), repeats=0))
        for name, stored in read_predictions(written.results / PROBABILITIES).items():
            layer = "all" if "+" in name else name.partition(AT)[2]
            yield f"{head}{suffix} {layer}".rstrip(), stored, (head, study.seed)
    try:
        trained = read_predictions(study.results / TRAINED_PROBABILITIES)
    except MissingResultsError:
        print("No network was fine-tuned: headrace finetune STUDY --method full")
        return
    stored = trained[network.name]
    for method, seed in sorted(stored.proba, key=lambda trained: trained[0] != "full"):
        yield f"finetune {method}", stored, (method, seed)


def _print(data: DomainData, proba: Mapping[str, Proba]) -> None:
    """Scores with intervals, and points of accuracy from the plain head and from fine-tuning."""
    names = list(proba)
    scores = score_heads(data, proba, seed=0)
    trained = [name for name in names if name.startswith("finetune")]
    references = dict.fromkeys([names[0], *trained[:1]])
    differences = [compare_heads(data, proba, name, seed=0)["accuracy"] for name in references]
    print(f"\n{data.name} {data.role}: {len(data)} images of {data.patients} patients\n")
    heading("", "accuracy", "AUROC", *(f"points from {name}" for name in references))
    for name in names:
        values = (scores[name][metric] for metric in ("accuracy", "auroc"))
        shown = (f"{v.estimate:.3f} [{v.low:.3f}, {v.high:.3f}]" for v in values)
        row(name, *shown, *(_points(of[name]) if name in of else "-" for of in differences))


def _points(difference: Difference) -> str:
    interval, p = difference.interval, difference.p_adjusted
    estimate, low, high = (
        f"{100 * v:+.1f}" for v in (interval.estimate, interval.low, interval.high)
    )
    return f"{estimate} [{low}, {high}] p {p:.3f}"


if __name__ == "__main__":
    main()
