"""The demo: generated chest radiographs of two hospitals, and their study file.

The two differ in what :class:`Hospital` declares and in nothing else, so what a stage says
about the gap can be compared with the truth. The images are phantoms: nothing in them says
anything about patients.

A chest is drawn as a map of attenuation, as X-rays would meet it on their way through the body,
on a square canvas that is a little larger than the film. Chest coordinates: ``x`` to the image's
right, which is the patient's left, ``y`` downwards, both in half widths of the film, so the film
spans -1 to 1; ``r = |x|``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from pipeline.errors import StudyError

_Plane = NDArray[np.floating]
_Traits = Mapping[str, float]

SITES = ("hospital_a", "hospital_b")
CLASSES = ("normal", "pneumonia")
#: Canvas edge in pixels, and the chest coordinate of that edge.
CANVAS = 320
REACH = 1.2
_SHORTEST_VESSEL = 0.045
#: Share of faint opacities, and the depth of lung in which opacities are centred.
_FAINT = 0.12
_DEEP = 0.6

#: One row per trait in which chests differ: (mean, standard deviation), in chest
#: coordinates where the name is a length.
_TRAITS = {
    "girth": (0.98, 0.05),  # half width of the trunk
    "shoulder": (-0.66, 0.04),  # height at which the shoulders end
    "abduction": (0.25, 0.12),  # how fast the arms part from the trunk, downwards
    "thickness": (0.92, 0.08),  # attenuation through the middle of the trunk
    "apex": (-0.74, 0.04),  # top of the lungs
    "width": (0.77, 0.035),  # lateral wall of the lungs at their base
    "diaphragm": (0.50, 0.06),  # top of the right dome
    "dome": (1.0, 0.15),  # how steeply the domes fall
    "aeration": (0.72, 0.05),  # attenuation that the air of the lungs takes away
    "heart": (0.39, 0.035),  # half length of the heart's shadow
    "tilt": (0.45, 0.1),  # the heart's axis against the horizontal, radians
    "midline": (0.0, 0.015),  # where the spine stands
    "vertebra": (0.135, 0.006),  # height of one vertebra
    "rib_pitch": (0.145, 0.007),  # distance of two ribs
    "rib_phase": (0.0, 0.03),  # height of the first rib
    "rib_slope": (0.95, 0.12),  # how steeply ribs fall towards the side
    "bone": (1.0, 0.2),  # strength of all bony shadows
    "clavicle": (-0.60, 0.03),  # height of the clavicles' inner ends
    "vascular": (1.0, 0.25),  # strength of the vessels
}
#: In what two images of one patient differ: (mean, standard deviation) per row.
_VIEW = {
    "right": (0.0, 0.03),  # shift of the patient, in half widths of the film
    "down": (0.0, 0.03),
    "turn": (0.0, 0.03),  # rotation in the plane of the film, radians
    "zoom": (1.0, 0.03),  # distance to the tube
    "dose": (1.5, 0.08),  # how fast the film saturates with attenuation
    "heel": (0.0, 0.05),  # brightness gradient from left to right edge, relative
    "left_edge": (0.0, 0.03),  # width of the collimator's dark border, if positive
    "right_edge": (0.0, 0.03),
}


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Who is drawn. The same patient is the same chest at every hospital.

    Attributes:
        name: Identity; part of every seed.
        label: One of :data:`CLASSES`. It adds opacities and moves nothing else.
        seed: Seed of the whole demo, 0 or more.
    """

    name: str
    label: str
    seed: int = 0

    def stream(self, *purpose: str | int) -> np.random.Generator:
        """Return this patient's own generator for one purpose.

        A stream per purpose means that one more draw somewhere moves no other draw.
        """
        text = repr((self.seed, self.name, *purpose)).encode()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16]))

    def traits(self, table: Mapping[str, tuple[float, float]], *purpose: str | int) -> _Traits:
        """Draw one value per row (mean, standard deviation), cut at two deviations."""
        draws = np.clip(self.stream(*purpose).standard_normal(len(table)), -2, 2)
        rows = zip(table.items(), draws, strict=True)
        return {name: mean + sd * float(draw) for (name, (mean, sd)), draw in rows}


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
        sites = zip(SITES, (source, target), (n_source, n_target), strict=True)
        for first, (site, hospital, images) in enumerate(sites, start=1):
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
            film = Image.fromarray(expose(drawn, patient, hospital, visit=visit))
            # Level 1: grain hardly compresses, and the default level takes 3 x as long.
            film.save(path, compress_level=1)
        # Sex and age are drawn apart from all that is in the images: no group is worse in truth.
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
    attenuation: _Plane, patient: Patient, hospital: Hospital, *, visit: int = 1, size: int = 224
) -> NDArray[np.uint8]:
    """One radiograph, uint8 ``(size, size)``, 0 (air) to 255 (bone).

    It is of what :func:`chest` drew of a patient, whose pose differs a little with each visit,
    1 or more. Each number of a hospital changes its own effect only.
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
    attenuation: _Plane, view: Mapping[str, float], size: int, field_of_view: float
) -> _Plane:
    """Cut the film's square out of the canvas, moved, turned and zoomed."""
    half = 1 / (view["zoom"] * field_of_view)
    cos, sin = np.cos(view["turn"]), np.sin(view["turn"])
    per_unit = (CANVAS - 1) / (2 * REACH)
    matrix = per_unit * half * 2 / size * np.array([[cos, -sin], [sin, cos]])
    centre = (CANVAS - 1) / 2 - per_unit * np.array([view["down"], view["right"]])
    offset = centre - matrix @ np.full(2, (size - 1) / 2)
    film: _Plane = ndimage.affine_transform(
        attenuation, matrix, offset, output_shape=(size, size), order=1, mode="nearest"
    )
    return film


def _mark(grey: _Plane, share: float, rng: np.random.Generator) -> _Plane:
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


def chest(patient: Patient) -> NDArray[np.float32]:
    """A patient's attenuation, float32 ``(CANVAS, CANVAS)``.

    0 in air, about 0.9 through the abdomen, up to about 1.7 where heart, spine and ribs lie
    behind each other.
    """
    traits = patient.traits(_TRAITS, "anatomy")
    lung = _lung(traits)
    heart = _heart(traits)
    attenuation = _trunk(traits) * traits["thickness"]
    air = lung * (1 - 0.45 * heart)
    if patient.label == "pneumonia":
        # Fluid takes the place of air, so no opacity is denser than soft tissue.
        air *= 1 - _opacities(patient.stream("disease"), lung)
    attenuation -= traits["aeration"] * air
    attenuation += 0.24 * heart + _mediastinum(traits)
    attenuation += traits["bone"] * (_spine(traits) + _ribs(traits) + _clavicles(traits))
    attenuation += (
        lung * (1 - 0.7 * heart) * traits["vascular"] * _vessels(patient.stream("vessels"))
    )
    attenuation += (0.25 + lung) * 0.016 * _texture(patient.stream("texture"), (1, 2.5, 7))
    return np.asarray(np.maximum(attenuation, 0), dtype=np.float32)


@cache
def _axes() -> tuple[_Plane, _Plane, _Plane]:
    """Chest coordinates x, y and r of every canvas pixel, each ``(CANVAS, CANVAS)``."""
    axis = np.linspace(-REACH, REACH, CANVAS, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y, np.abs(x)


def _edge(distance: _Plane, softness: float) -> _Plane:
    """0 outside, 1 inside; ``distance`` is positive inside, ``softness`` the blur."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / (2 * softness)), dtype=np.float32)


def _ellipse(centre: tuple[float, float], axes: tuple[float, float], tilt: float = 0.0) -> _Plane:
    """Squared elliptical radius: 0 in the centre, 1 on the outline."""
    x, y, _ = _axes()
    dx, dy = x - centre[0], y - centre[1]
    along = (dx * np.cos(tilt) + dy * np.sin(tilt)) / axes[0]
    across = (dy * np.cos(tilt) - dx * np.sin(tilt)) / axes[1]
    return np.asarray(along**2 + across**2, dtype=np.float32)


def _trunk(traits: _Traits) -> _Plane:
    """Soft tissue: an elliptical cylinder with shoulders, a neck and arms held a little away."""
    _, y, r = _axes()
    half = traits["girth"] - 0.06 * y + 0.5 * _edge(traits["shoulder"] + 0.3 - y, 0.07)
    trunk = np.clip(1 - (r / half) ** 2, 0, None) ** 0.42
    away = half + 0.19 + traits["abduction"] * (y + 0.5)
    arm = 0.62 * np.sqrt(np.clip(1 - ((r - away) / 0.19) ** 2, 0, None))
    neck = 0.75 * np.sqrt(np.clip(1 - (r / 0.27) ** 2, 0, None))
    slope = traits["shoulder"] - 0.42 + 0.36 * np.clip(r - 0.1, 0, None) ** 1.2
    below = np.clip((y - slope) / 0.36, 0, 1) ** 0.5
    body = below * np.maximum(trunk, arm)
    # A smooth maximum lets the neck run into the shoulders without a crease.
    return np.asarray((neck**6 + body**6) ** (1 / 6), dtype=np.float32)


def _wall(traits: _Traits) -> _Plane:
    """Distance inwards from the lateral wall of the thorax, which closes at the apex."""
    _, y, r = _axes()
    down = np.clip((y - traits["apex"]) / (traits["diaphragm"] + 0.3 - traits["apex"]), 0, 1)
    return np.asarray(traits["width"] * np.sqrt(1 - (1 - down) ** 2.6) - r)


def _lung(traits: _Traits) -> _Plane:
    """How much air lies in the way: 0 outside the lungs, towards 1 deep inside."""
    x, y, r = _axes()
    medial = r - 0.1 - 0.14 * np.exp((traits["apex"] - y) / 0.1)
    top = 0.3  # where a dome is highest; it falls faster towards the side
    from_top = np.where(r > top, 1.45, 0.45) * (r - top) ** 2 * traits["dome"]
    dome = traits["diaphragm"] + 0.05 * (x > 0) + from_top - y
    # A smooth minimum: a hard one would leave creases where two borders meet.
    borders = np.stack([_wall(traits), medial, dome])
    inside = -0.012 * np.log(np.exp(-np.clip(borders, -0.5, 0.5) / 0.012).sum(axis=0))
    deep = 1 - np.exp(-np.maximum(inside, 0) / 0.16)
    return np.asarray(_edge(inside, 0.007) * (0.45 + 0.55 * deep), dtype=np.float32)


def _heart(traits: _Traits) -> _Plane:
    """Thickness of heart, trunk and aortic knob, 0 to 1; most of it on the patient's left."""
    size, top = traits["heart"], traits["diaphragm"] - 0.2
    shadows = (
        _ellipse((0.15, top), (1.08 * size, 0.7 * size), traits["tilt"]),  # ventricles
        _ellipse((-0.07, top - 0.03), (0.42 * size, 0.66 * size)),  # right atrium
        _ellipse((0.06, top - 0.3), (0.14, 0.28), -0.25),  # pulmonary trunk
        _ellipse((0.09, traits["apex"] + 0.4), (0.1, 0.11)),  # aortic knob
    )
    thick = [np.clip(1 - shadow, 0, 1) ** 0.35 for shadow in shadows]
    return np.asarray(ndimage.gaussian_filter(np.max(thick, axis=0), 2.0))


def _mediastinum(traits: _Traits) -> _Plane:
    """Great vessels in the middle, and the dark trachea above its fork."""
    x, y, _ = _axes()
    dx = np.abs(x - 0.5 * traits["midline"])
    trachea = _edge(0.045 - dx, 0.012) * _edge(traits["apex"] + 0.36 - y, 0.04)
    return np.asarray(0.1 * np.exp(-((dx / 0.15) ** 2)) - 0.09 * trachea)


def _spine(traits: _Traits) -> _Plane:
    """A column of vertebrae with brighter end plates and dark discs between them."""
    x, y, _ = _axes()
    step = y / traits["vertebra"]
    along = np.abs(step - np.round(step))
    half = 0.075 + 0.012 * np.cos(2 * np.pi * step)
    column = _edge(half - np.abs(x - traits["midline"]), 0.012)
    plates = 0.05 * np.exp(-(((along - 0.36) / 0.06) ** 2)) - 0.05 * _edge(along - 0.43, 0.03)
    return np.asarray(column * (0.16 + 1.6 * plates))


def _ribs(traits: _Traits) -> _Plane:
    """Posterior ribs, fainter anterior ones, and the bright rim where they turn round."""
    _, y, r = _axes()
    first = traits["apex"] + 0.03 + traits["rib_phase"]
    back = traits["rib_slope"] * r**2.2 - 0.28 * r
    front = 0.2 + 0.75 * (traits["width"] - r) - 0.5 * (traits["width"] - r) ** 2
    posterior = _comb((y - first - back) / traits["rib_pitch"], 10)
    anterior = _comb((y - first - front) / (1.25 * traits["rib_pitch"]), 6)
    wall = _wall(traits)
    posterior *= 0.13 * _edge(r - 0.07, 0.01)
    anterior *= 0.08 * _edge(r - 0.3, 0.04)
    rim = np.exp(-(((wall + 0.015) / 0.022) ** 2)) * _edge(traits["diaphragm"] + 0.2 - y, 0.1)
    return np.asarray((posterior + anterior) * _edge(wall + 0.035, 0.008) + 0.1 * rim)


def _comb(index: _Plane, count: int) -> _Plane:
    """Bars at the integers 0 to ``count - 1`` of a rib index, with brighter edges."""
    nearest = np.round(index)
    off = np.abs(index - nearest)
    bar = _edge(0.25 - off, 0.03) * (0.5 + 8.0 * off**2)
    return np.asarray(bar * ((nearest >= 0) & (nearest < count)))


def _clavicles(traits: _Traits) -> _Plane:
    """Two S-shaped bars from the breastbone to the shoulders."""
    x, y, r = _axes()
    middle = traits["clavicle"] - 0.14 * r + 0.035 * np.sin(6.5 * r) - 0.012 * np.sign(x)
    off = np.abs(y - middle) / (0.035 - 0.012 * np.sin(3.8 * r))
    bar = _edge(1 - off, 0.1) * (0.5 + 0.5 * np.minimum(off, 1) ** 2)
    return np.asarray(0.2 * bar * _edge(r - 0.06, 0.01) * _edge(0.86 - r, 0.02))


def _vessels(rng: np.random.Generator) -> _Plane:
    """Two trees of vessels that leave the hila and thin out with every fork."""
    image = Image.new("F", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(image)
    for side in (-1, 1):
        for angle in np.linspace(-1.3, 1.4, 8) + rng.normal(0, 0.2, 8):
            hilum = (side * 0.15, 0.05 * rng.standard_normal() - 0.05)
            _branch(draw, rng, (*hilum, angle if side > 0 else np.pi - angle), 0.16)
    # The hila themselves are a haze of vessels too small to separate.
    haze = sum(np.exp(-_ellipse((side * 0.2, -0.06), (0.12, 0.2))) for side in (-1, 1))
    tree = ndimage.gaussian_filter(np.asarray(image, dtype=np.float32), 0.9)
    return np.asarray(tree + 0.12 * haze)


def _branch(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    start: tuple[float, float, float],
    length: float,
) -> None:
    """Draw one vessel from ``start`` (x, y, direction in radians) and its two children."""
    if length < _SHORTEST_VESSEL:
        return
    x, y, angle = start
    end = (x + length * np.cos(angle), y + length * np.sin(angle))
    pixels = [(1 + v / REACH) * (CANVAS - 1) / 2 for v in (x, y, *end)]
    draw.line(pixels, fill=0.03 + 0.9 * length, width=1 + round(12 * length))
    for turn in rng.normal((-0.3, 0.4), 0.25):
        _branch(draw, rng, (*end, angle + turn), length * rng.uniform(0.6, 0.92))


def _texture(rng: np.random.Generator, scales: tuple[float, ...]) -> _Plane:
    """Noise with structure at several scales (pixels), of unit variance in all."""
    total = np.zeros((CANVAS, CANVAS), dtype=np.float32)
    for scale in scales:
        white = rng.standard_normal(total.shape, dtype=np.float32)
        layer = ndimage.gaussian_filter(white, scale, truncate=2.5, mode="wrap")
        total += layer / layer.std()
    return np.asarray(total / np.sqrt(len(scales)))


def _opacities(rng: np.random.Generator, lung: _Plane) -> _Plane:
    """Share of air lost: two to five soft, ragged clouds, mostly low, some of them faint."""
    x, y, _ = _axes()
    weight = (lung > _DEEP) * np.exp(1.8 * y)
    centres = rng.choice(lung.size, size=rng.integers(2, 6), p=(weight / weight.sum()).ravel())
    cloud = np.zeros_like(lung)
    for pixel in centres:
        centre = (float(x.flat[pixel]), float(y.flat[pixel]))
        axes = tuple(rng.uniform(0.14, 0.32, 2))
        strength = rng.uniform(0.8, 1.6) if rng.random() > _FAINT else 0.35
        cloud += strength * np.exp(-_ellipse(centre, axes, rng.uniform(0, np.pi)))
    ragged = np.clip(1 + 0.5 * _texture(rng, (3, 6, 12)), 0, None)
    return np.asarray(1 - np.exp(-cloud * ragged), dtype=np.float32)
