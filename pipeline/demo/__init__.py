"""Write the demo: generated chest radiographs of two hospitals, and their study file.

The two differ in what :class:`Hospital` declares and in nothing else, so what a stage says
about the gap can be compared with the truth. The pictures are phantoms: nothing in them says
anything about patients.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.demo.phantom import CANVAS, CLASSES, REACH, Patient, Plane, chest
from pipeline.errors import StudyError

SITES = ("hospital_a", "hospital_b")
#: In what two images of one patient differ: (mean, standard deviation) per row.
_VIEW: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "right": (0.0, 0.03),  # shift of the patient, in half widths of the film
        "down": (0.0, 0.03),
        "turn": (0.0, 0.03),  # rotation in the plane of the film, radians
        "zoom": (1.0, 0.03),  # distance to the tube
        "dose": (1.5, 0.08),  # how fast the film saturates with attenuation
        "heel": (0.0, 0.05),  # brightness gradient from left to right edge, relative
        "left_edge": (0.0, 0.03),  # width of the collimator's dark border, if positive
        "right_edge": (0.0, 0.03),
    }
)


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """How a hospital takes and stores radiographs. The defaults are the source's.

    Attributes:
        exposure: Gain on the grey value (0 to 1, bright is dense) before it is cut at 1.
        gamma: Exponent on the exposed grey value; below 1 is brighter.
        noise: Standard deviation of white noise on the grey value.
        blur: Standard deviation of the detector's Gaussian blur, in pixels of the image.
        field_of_view: Zoom about the centre: 1 shows the whole chest, more a part of it.
        marker_normal: Share of the images of normal patients with a bright "L" in the upper
            right corner.
        marker_pneumonia: The same of pneumonia; unequal values make it a shortcut.
        prevalence: Share of images with pneumonia; kept to within two images.
    """

    exposure: float = 1.0
    gamma: float = 1.0
    noise: float = 0.015
    blur: float = 0.0
    field_of_view: float = 1.0
    marker_normal: float = 0.0
    marker_pneumonia: float = 0.0
    prevalence: float = 0.5


SOURCE = Hospital()
TARGET = Hospital(
    exposure=1.1,
    gamma=0.85,
    noise=0.022,
    blur=0.6,
    field_of_view=1.1,
    marker_normal=0.5,
    marker_pneumonia=0.5,
    prevalence=0.35,
)


def write_demo(
    folder: Path,
    *,
    seed: int = 0,
    source: Hospital = SOURCE,
    target: Hospital = TARGET,
    n_source: int = 400,
    n_target: int = 200,
    backbone: str = "efficientnet_lite0",
) -> Path:
    """Write both hospitals' images and their study file; equal arguments give equal bytes.

    Args:
        folder: Becomes ``hospital_a/{normal,pneumonia}/patient0001_1.png`` and so on (8-bit
            grey), ``hospital_a.csv`` (sex and age of its patients), ``hospital_b/...`` and
            ``study.toml``. It appears once it is whole.
        seed: Of everything random; also the study's.
        source: The hospital with the training images.
        target: The hospital that the model is taken to.
        n_source: Images of the source; a patient has 1 to 3 of them.
        n_target: Images of the target; none is of a patient of the source.
        backbone: Name of the study's one backbone.

    Returns:
        Path of the study file.

    Raises:
        StudyError: The seed is negative, or the folder is there already.
    """
    if seed < 0:
        raise StudyError(f"seed {seed}: allowed is 0 or more")
    if folder.exists():
        raise StudyError(f"{folder} is there already: remove it, or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".headrace-demo-", dir=folder.parent) as scratch:
        whole = Path(scratch, "demo")
        for first, (site, hospital, images) in enumerate(
            zip(SITES, (source, target), (n_source, n_target), strict=True), start=1
        ):
            people = cohort(hospital, images, first=first, seed=seed)
            _write_site(whole / site, hospital, people)
        text = _STUDY.format(seed=seed, backbone=backbone)
        (whole / "study.toml").write_text(text, encoding="utf-8", newline="\n")
        whole.replace(folder)
    return folder / "study.toml"


def cohort(hospital: Hospital, images: int, *, first: int, seed: int) -> dict[Patient, int]:
    """Patients of a hospital with their number of images, 1 to 3, which add up to all.

    Patients have every other number, beginning with the first: those of 1 and 2 are others.
    """
    counts: dict[Patient, int] = {}
    while (left := images - sum(counts.values())) > 0:
        patient = Patient(name=f"patient{first + 2 * len(counts):04d}", label="normal", seed=seed)
        counts[patient] = min(left, int(patient.stream("visits").integers(1, 4)))
    # Who falls ill first is drawn once: another prevalence moves the line, not the order.
    wanted, ill = round(hospital.prevalence * images), set()
    for patient in sorted(counts, key=lambda patient: patient.stream("risk").random()):
        if counts[patient] <= wanted:
            wanted -= counts[patient]
            ill.add(patient)
    return {replace(p, label=CLASSES[p in ill]): count for p, count in counts.items()}


def _write_site(folder: Path, hospital: Hospital, people: Mapping[Patient, int]) -> None:
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
    lines = ["patient,sex,age"]
    for patient, images in people.items():
        drawn = chest(patient)
        for visit in range(1, images + 1):
            path = folder / patient.label / f"{patient.name}_{visit}.png"
            # Level 1: grain hardly compresses, and the default level takes 3 x as long.
            Image.fromarray(expose(drawn, patient, hospital, visit=visit)).save(
                path, compress_level=1
            )
        # Sex and age are drawn apart from all that is in the pictures: no group is worse in truth.
        rng = patient.stream("attributes")
        lines.append(f"{patient.name},{'FM'[rng.integers(2)]},{rng.integers(18, 91)}")
    table = folder.with_suffix(".csv")
    table.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="\n")


_STUDY = r"""# Generated chest radiographs of two hospitals; written by `headrace demo`.
name = "demo"
seed = {seed}

[source]
path = "hospital_a"
group = '^(patient\d+)'
attributes = "hospital_a.csv"
validation = 0.2

[target.hospital_b]
path = "hospital_b"
group = '^(patient\d+)'
attributes = "hospital_b.csv"

[subgroups]
sex = true
age = [40, 65]

[backbone.{backbone}]
"""


def expose(
    attenuation: Plane, patient: Patient, hospital: Hospital, *, visit: int = 1, size: int = 224
) -> NDArray[np.uint8]:
    """One radiograph, uint8 ``(size, size)``, 0 (air) to 255 (bone).

    It is of what :func:`pipeline.demo.phantom.chest` drew of a patient, whose pose differs a
    little with each visit, 1 or more. Each number of a hospital changes its own effect only.
    """
    view = patient.traits(_VIEW, "view", visit)
    across = np.linspace(-1, 1, size, dtype=np.float32)
    film = _project(attenuation, view, size, hospital.field_of_view)
    grey = 1 - np.exp(-view["dose"] * film)
    grey = ndimage.gaussian_filter(grey, hospital.blur) * (1 + view["heel"] * across)
    grey = np.clip(grey * hospital.exposure, 0, 1) ** hospital.gamma
    grey *= (across > 2 * view["left_edge"] - 1) & (across < 1 - 2 * view["right_edge"])
    # The noise is drawn at any strength, and for itself: other values stay the same.
    grain = patient.stream("noise", visit).standard_normal(grey.shape, dtype=np.float32)
    grey = np.clip(grey + hospital.noise * grain, 0, 1)
    is_ill = patient.label == CLASSES[1]
    share = hospital.marker_pneumonia if is_ill else hospital.marker_normal
    marked = _mark(grey, share, patient.stream("marker", visit))
    return np.asarray(np.round(255 * marked), dtype=np.uint8)


def _project(
    attenuation: Plane, view: Mapping[str, float], size: int, field_of_view: float
) -> Plane:
    """Cut the film's square out of the canvas, moved, turned and zoomed."""
    half = 1 / (view["zoom"] * field_of_view)
    cos, sin = np.cos(view["turn"]), np.sin(view["turn"])
    per_unit = (CANVAS - 1) / (2 * REACH)
    matrix = per_unit * half * 2 / size * np.array([[cos, -sin], [sin, cos]])
    centre = (CANVAS - 1) / 2 - per_unit * np.array([view["down"], view["right"]])
    offset = centre - matrix @ np.full(2, (size - 1) / 2)
    film: Plane = ndimage.affine_transform(
        attenuation, matrix, offset, output_shape=(size, size), order=1, mode="nearest"
    )
    return film


def _mark(grey: Plane, share: float, rng: np.random.Generator) -> Plane:
    """Burn a bright "L" into the corner on the patient's left of a share of the images."""
    if rng.random() >= share:
        return grey
    unit = len(grey) / 112
    top, left = (round(unit * v) for v in rng.uniform((5, 97), (9, 101)))
    height, width, stroke = (max(1, round(unit * v)) for v in (8, 5, 1.5))
    marked = grey.copy()
    marked[top : top + height, left : left + stroke] = 0.97
    marked[top + height - stroke : top + height, left : left + width] = 0.97
    return marked
