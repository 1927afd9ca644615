"""Which causes are named in hospitals that differ in one known way, and what labels would show.

An image is a line of 64 pixels: tissue, a disease of some strength and another finding. A
frozen random network makes features of it. Patients have 1 to 3 images. The source's patients
follow one rule for the label; a target differs in one kind of shift, at one of three strengths.
Prints the tables of the README: ``python -m tests.shift.causes [RUNS] [KIND ...] [--jobs N]``.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.special import expit

from pipeline.data.attributes import Grouping
from pipeline.data.domain import DomainData
from pipeline.parallel import run_parallel
from pipeline.shift.adapt import AdaptationPlan, SealedLabels, predict_target, score
from pipeline.shift.decompose import decompose, error_table
from pipeline.shift.detect import detect, images_differ
from pipeline.shift.head import fit_source
from pipeline.shift.label_free import estimate_accuracy
from pipeline.shift.verdict import causes_of
from tests.evaluation.coverage import in_processes, parser

PIXELS, FEATURES = 64, 96
_fixed = np.random.default_rng(2718)
#: Frozen network: short filters at random places, rectified.
_FILTERS = _fixed.normal(size=(PIXELS, FEATURES)) * (
    np.abs(np.arange(PIXELS)[:, None] - _fixed.integers(0, PIXELS, FEATURES)) < 6
)
_BIAS = _fixed.normal(size=FEATURES)
_place = np.arange(PIXELS)
#: The disease is a fine texture at one place, the other finding one elsewhere.
DISEASE = np.exp(-(((_place - 22) / 7) ** 2)) * np.cos(_place * 1.9)
OTHER = np.exp(-(((_place - 44) / 7) ** 2)) * np.cos(_place * 1.7)
#: Old patients have a denser background.
AGED = 0.5 * np.cos(_place * 0.15)
#: A scanner adds the same picture to all its images.
SHADE = DISEASE + 0.3 * _fixed.normal(size=PIXELS)


class Change(NamedTuple):
    """What a hospital does otherwise; the defaults are those of the source."""

    ill: float = 0.3
    old: float = 0.2
    turned: float = 0.0
    flipped: float = 0.0
    offset: float = 0.0
    contrast: float = 1.0
    noise: float = 0.3
    blur: int = 1
    chosen: float = 0.0


HARDER = "harder_images_or_label_errors"
OF_IMAGES = ("acquisition", "acquisition_or_labels")
#: By kind: the property, its strengths, and the causes that fit it.
KINDS: Mapping[str, tuple[str, tuple, tuple[str, ...]]] = {
    "none": ("ill", (0.3,), ()),
    "prevalence": ("ill", (0.5, 0.7, 0.9), ("class_mix",)),
    "scanner offset": ("offset", (0.4, 0.8, 1.2), OF_IMAGES),
    "contrast": ("contrast", (0.7, 0.5, 0.3), OF_IMAGES),
    "concept": ("turned", (30, 60, 90), ("label_definition", "acquisition_or_labels")),
    "noise": ("noise", (0.7, 1.1, 1.5), (HARDER, *OF_IMAGES)),
    "blur": ("blur", (2, 3, 4), (HARDER, *OF_IMAGES)),
    "label noise": ("flipped", (0.1, 0.2, 0.3), ("label_errors", HARDER)),
    "subgroup mix": ("old", (0.5, 0.7, 0.9), ("subgroup_mix",)),
    "subgroup mix, no attribute": ("old", (0.5, 0.7, 0.9), (HARDER, *OF_IMAGES)),
}
#: Shifts under which the accuracy is estimated without labels, and one that goes unseen.
UNLABELLED: Mapping[str, Change] = {
    "none": Change(),
    "class mix": Change(ill=0.6),
    "covariate shift": Change(chosen=1.0),
    "concept (goes unseen)": Change(turned=60),
}


def hospital(rng, patients: int, change: Change, *, role: str) -> tuple[DomainData, Grouping]:
    """Images of a hospital, and who of the patients is old."""
    drawn = patients if not change.chosen else 4 * patients
    old = rng.random(drawn) < change.old
    disease, label = _diseases(rng, drawn, change)
    group = np.repeat(np.arange(drawn), rng.integers(1, 4, drawn))
    image = rng.normal(size=(len(group), 6)) @ np.cos(np.outer(np.arange(6), _place) * 0.2) * 0.2
    image += np.where(old, 0.15, 1.0)[group, None] * (disease[group] @ np.stack([DISEASE, OTHER]))
    image += old[group][:, None] * AGED
    if change.blur > 1:
        image = uniform_filter1d(image, change.blur, axis=1, mode="nearest")
    image += change.noise * rng.normal(size=image.shape)
    # Chosen by what all images of a patient show, so the label given the images stays.
    shown = np.bincount(group, image @ (DISEASE + OTHER)) / np.bincount(group)
    kept = rng.random(drawn) < expit(change.chosen * (shown - shown.mean()) / shown.std())
    rows = np.isin(group, np.flatnonzero(kept)[:patients] if change.chosen else group)
    image = change.contrast * image[rows] + change.offset * SHADE
    features = np.maximum(image @ _FILTERS + _BIAS, 0).astype(np.float32)
    data = DomainData(
        name=role,
        role=role,
        group=group[rows],
        label=label[group[rows]].astype(np.int64),
        features=features,
    )
    return data, Grouping(
        attribute="age", names=("young", "old"), member=old[group[rows]].astype(int)
    )


def _diseases(rng, patients: int, change: Change):
    """Strengths of the two findings by patient, and the label at the share of ill ones."""
    wanted = rng.permutation(patients) < round(change.ill * patients)
    angle = np.deg2rad(change.turned)
    findings, done = np.zeros((patients, 2)), np.zeros(patients, bool)
    while not done.all():
        drawn = 1.5 * rng.normal(size=(patients, 2))
        axis = drawn @ [np.cos(angle), np.sin(angle)]
        fits = (rng.random(patients) < expit(6 * (axis - 0.8))) == wanted
        findings[fits & ~done] = drawn[fits & ~done]
        done |= fits
    flipped = rng.random(patients) < change.flipped
    return findings, wanted ^ flipped


def pair(seed: int, change: Change, patients: int):
    """A source of 400 patients, its head, and a target with labels."""
    rng = np.random.default_rng([seed, 31])
    source, ages = hospital(rng, 400, Change(), role="source")
    target, ages_of_target = hospital(rng, patients, change, role="target")
    model = fit_source(source)
    return model, model.apply(target), (ages, ages_of_target)


def named(seed: int, change: Change, *, attribute: bool = True, patients: int = 200) -> list[str]:
    """The first two causes that are named."""
    model, target, ages = pair(seed, change, patients)
    blind = target.sealed()
    plan = AdaptationPlan(seeds=(0,), shots=())
    sealed = SealedLabels(target.label, plan.digest())
    _, best = score(predict_target(model, blind, plan), sealed, model, blind, plan)
    effects = decompose(model.data, target, groupings=[ages] if attribute else [], draws=500)
    training = model.apply(model.data)
    effects |= error_table(model.data, target, source=model.data, training=training)[1]
    differ = images_differ(detect(model.data, model.cross_fit(blind), draws=199)[0])
    adaptation_helps = best is not None and best.shown
    return list(causes_of(effects, images_differ=differ, adaptation_helps=adaptation_helps))[:2]


def estimated(seed: int, change: Change, patients: int) -> tuple[bool, float]:
    """Whether the range without labels holds the accuracy that labels show, and its width."""
    model, target, _ = pair(seed, change, patients)
    rng = np.random.default_rng(seed)
    estimate = estimate_accuracy(model.data, target.sealed(), rng, classes=("well", "ill"))
    low, high = estimate["low"], estimate["high"]
    return low <= 1 - target.wrong().mean() <= high, high - low


def rates(
    kind: str, strength, runs: int, patients: int = 200, run: Callable = run_parallel
) -> tuple[float, float, Counter]:
    """Share of runs that name a right cause, and that name a wrong one; how often each."""
    field, _, right = KINDS[kind]
    change, attribute = Change(**{field: strength}), "no attribute" not in kind
    jobs = [
        partial(named, seed, change, attribute=attribute, patients=patients) for seed in range(runs)
    ]
    results = list(run(jobs))
    hits = np.mean([any(cause in right for cause in causes) for causes in results])
    wrong = np.mean([any(cause not in right for cause in causes) for causes in results])
    return hits, wrong, Counter(cause for causes in results for cause in causes)


def main() -> None:
    """Print which causes are named, and how often the range without labels holds."""
    options = parser(__doc__, 40)
    options.add_argument("kinds", nargs="*", default=[*KINDS], help="All where left out.")
    chosen = options.parse_args()
    with in_processes(chosen.jobs) as run:
        error = 50 / np.sqrt(chosen.runs)
        print(f"{chosen.runs} pairs of hospitals a line: standard errors at most {error:.0f} %.\n")
        print("| kind of shift | strength, patients | right, % | not named, % | wrong, % | named |")
        print("|---|---|---|---|---|---|")
        for kind in chosen.kinds:
            field, strengths, _ = KINDS[kind]
            lines = [(s, 200) for s in strengths] + ([(0.3, 30)] if kind == "none" else [])
            for strength, patients in lines:
                hits, wrong, causes = rates(kind, strength, chosen.runs, patients, run)
                shown = ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
                numbers = f"{100 * hits:.0f} | {100 - 100 * hits:.0f} | {100 * wrong:.0f} | {shown}"
                print(f"| {kind} | {field} {strength}, {patients} | {numbers} |", flush=True)
        print("\n| shift | accuracy held by the range, % of 30 / 100 / 400 patients | width |")
        print("|---|---|---|")
        for name, change in UNLABELLED.items():
            jobs = [
                [partial(estimated, s, change, n) for s in range(chosen.runs)]
                for n in (30, 100, 400)
            ]
            shares = [100 * np.mean(list(run(of_size)), axis=0) for of_size in jobs]
            held, width = (" / ".join(f"{s[k]:.0f}" for s in shares) for k in (0, 1))
            print(f"| {name} | {held} | {width} |", flush=True)


if __name__ == "__main__":
    main()
