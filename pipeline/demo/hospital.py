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

from pipeline.demo.phantom import CANVAS, CLASSES, REACH, Patient, Plane

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

    ``dataclasses.replace(hospital, gamma=1.4)`` is a hospital with one declared difference.

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
    """

    exposure: float = 1.0
    gamma: float = 1.0
    noise: float = 0.015
    blur: float = 0.0
    field_of_view: float = 1.0
    marker_normal: float = 0.0
    marker_pneumonia: float = 0.0
    prevalence: float = 0.5


def expose(
    attenuation: Plane, patient: Patient, hospital: Hospital, *, visit: int = 1, size: int = 224
) -> NDArray[np.uint8]:
    """Take one radiograph. The same arguments give the same bytes.

    Args:
        attenuation: What :func:`pipeline.demo.phantom.chest` drew of the patient.
        patient: Whose chest.
        hospital: Where; each of its numbers changes its own effect only.
        visit: Number of the image of this patient, 1 or more: the patient stands a
            little differently each time.
        size: Edge of the image in pixels.

    Returns:
        uint8 ``(size, size)``, 0 (air) to 255 (bone).
    """
    view = patient.traits(VIEW, "view", visit)
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
