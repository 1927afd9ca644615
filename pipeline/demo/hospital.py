"""Take a radiograph of a drawn chest as one hospital would take it.

The hospitals differ in what :class:`Hospital` declares and in nothing else. The same
patient and visit at two of them is the same chest in the same pose.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.demo.phantom import CANVAS, CLASSES, REACH, Patient, Plane, chest
from pipeline.errors import StudyError

#: Allowed range of every number of a hospital, both ends included.
RANGES = MappingProxyType(
    {
        "exposure": (0.2, 5.0),
        "gamma": (0.2, 5.0),
        "noise": (0.0, 1.0),
        "blur": (0.0, 10.0),
        "field_of_view": (0.8, 2.0),
        "marker_normal": (0.0, 1.0),
        "marker_pneumonia": (0.0, 1.0),
        "prevalence": (0.0, 1.0),
    }
)


#: In what two images of one patient differ: (mean, standard deviation) per row.
VIEW: Mapping[str, tuple[float, float]] = MappingProxyType(
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
    """How one hospital takes and stores radiographs. The defaults are the source's.

    ``dataclasses.replace(hospital, gamma=1.4)`` is a hospital with one known difference.

    Attributes:
        exposure: Gain on the grey value (0 to 1, bright is dense) before it is cut at
            1; 0.2 to 5. Above 1 the picture is brighter and dense parts burn out.
        gamma: Exponent on the exposed grey value, 0.2 to 5; below 1 is brighter.
        noise: Standard deviation of white noise on the grey value, 0 to 1.
        blur: Standard deviation of the detector's Gaussian blur in pixels of the
            written image, 0 to 10. It comes before the noise.
        field_of_view: Zoom about the centre, 0.8 to 2: 1 shows the whole chest, more a
            part of it.
        marker_normal: Probability that an image of a normal patient has a bright "L"
            in the upper right corner, 0 to 1.
        marker_pneumonia: The same for pneumonia; unequal values make it a shortcut.
        prevalence: Share of images with pneumonia, 0 to 1; kept to within two images.

    Raises:
        StudyError: A value lies outside its range.
    """

    exposure: float = 1.0
    gamma: float = 1.0
    noise: float = 0.015
    blur: float = 0.0
    field_of_view: float = 1.0
    marker_normal: float = 0.0
    marker_pneumonia: float = 0.0
    prevalence: float = 0.5

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise StudyError(
                    f"hospital has {name} = {getattr(self, name)}; allowed is {low:g} to {high:g}"
                )


def render(
    patient: Patient, hospital: Hospital, *, visit: int = 1, size: int = 224
) -> NDArray[np.uint8]:
    """Take one radiograph. The same arguments give the same bytes.

    Args:
        patient: Whose chest.
        hospital: Where; each of its numbers changes its own effect only.
        visit: Number of the image of this patient, 1 or more: the patient stands a
            little differently each time.
        size: Edge of the image in pixels.

    Returns:
        uint8 ``(size, size)``, 0 (air) to 255 (bone).
    """
    return expose(chest(patient), Shot(patient, hospital, visit, size))


@dataclass(frozen=True)
class Shot:
    """Everything about one image but the drawn chest."""

    patient: Patient
    hospital: Hospital
    visit: int
    size: int

    def stream(self, purpose: str) -> np.random.Generator:
        """Return the generator of this image for one purpose."""
        return self.patient.stream(purpose, self.visit)


def expose(attenuation: Plane, shot: Shot) -> NDArray[np.uint8]:
    """Turn an already drawn chest into one radiograph: :func:`render` for many visits.

    Args:
        attenuation: What :func:`pipeline.demo.phantom.chest` drew of the shot's patient.
        shot: Patient, hospital, visit and size.

    Returns:
        uint8 ``(size, size)``, the same bytes as :func:`render`.
    """
    hospital = shot.hospital
    view = shot.patient.traits(VIEW, "view", shot.visit)
    across = np.linspace(-1, 1, shot.size, dtype=np.float32)
    grey = 1 - np.exp(-view["dose"] * _project(attenuation, view, shot))
    grey = ndimage.gaussian_filter(grey, hospital.blur) * (1 + view["heel"] * across)
    grey = np.clip(grey * hospital.exposure, 0, 1) ** hospital.gamma
    grey *= (across > 2 * view["left_edge"] - 1) & (across < 1 - 2 * view["right_edge"])
    # The noise is drawn at any strength, and for itself: other values stay the same.
    grain = shot.stream("noise").standard_normal(grey.shape, dtype=np.float32)
    grey = np.clip(grey + hospital.noise * grain, 0, 1)
    return np.asarray(np.round(255 * _mark(grey, shot)), dtype=np.uint8)


def _project(attenuation: Plane, view: Mapping[str, float], shot: Shot) -> Plane:
    """Cut the film's square out of the canvas, moved, turned and zoomed."""
    half = 1 / (view["zoom"] * shot.hospital.field_of_view)
    cos, sin = np.cos(view["turn"]), np.sin(view["turn"])
    per_unit = (CANVAS - 1) / (2 * REACH)
    matrix = per_unit * half * 2 / shot.size * np.array([[cos, -sin], [sin, cos]])
    centre = (CANVAS - 1) / 2 - per_unit * np.array([view["down"], view["right"]])
    offset = centre - matrix @ np.full(2, (shot.size - 1) / 2)
    shape = (shot.size, shot.size)
    film: Plane = ndimage.affine_transform(
        attenuation, matrix, offset, output_shape=shape, order=1, mode="nearest"
    )
    return film


def _mark(grey: Plane, shot: Shot) -> Plane:
    """Burn a bright "L" into the corner on the patient's left, or do not."""
    rng = shot.stream("marker")
    hospital = shot.hospital
    sick = shot.patient.label == CLASSES[1]
    if rng.random() >= (hospital.marker_pneumonia if sick else hospital.marker_normal):
        return grey
    unit = shot.size / 112
    top, left = (round(unit * v) for v in rng.uniform((5, 97), (9, 101)))
    height, width, stroke = (max(1, round(unit * v)) for v in (8, 5, 1.5))
    marked = grey.copy()
    marked[top : top + height, left : left + stroke] = 0.97
    marked[top + height - stroke : top + height, left : left + width] = 0.97
    return marked
