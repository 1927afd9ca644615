"""Draw one generated chest: its anatomy, and its pneumonia if it has one.

A drawing is a map of attenuation, as X-rays would meet it on their way through the
body, on a square canvas that is a little larger than the film.

Chest coordinates: ``x`` to the image's right, which is the patient's left, ``y``
downwards, both in half widths of the film, so the film spans -1 to 1; ``r = |x|``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Plane = NDArray[np.floating]
_Traits = Mapping[str, float]

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
_TRAITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
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
)


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
def _axes() -> tuple[Plane, Plane]:
    """Chest coordinates x and y of every canvas pixel, each ``(CANVAS, CANVAS)``."""
    axis = np.linspace(-REACH, REACH, CANVAS, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _edge(distance: Plane, softness: float) -> Plane:
    """0 outside, 1 inside; ``distance`` is positive inside, ``softness`` the blur."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / (2 * softness)), dtype=np.float32)


def _ellipse(centre: tuple[float, float], axes: tuple[float, float], tilt: float = 0.0) -> Plane:
    """Squared elliptical radius: 0 in the centre, 1 on the outline."""
    x, y = _axes()
    dx, dy = x - centre[0], y - centre[1]
    along = (dx * np.cos(tilt) + dy * np.sin(tilt)) / axes[0]
    across = (dy * np.cos(tilt) - dx * np.sin(tilt)) / axes[1]
    return np.asarray(along**2 + across**2, dtype=np.float32)


def _trunk(traits: _Traits) -> Plane:
    """Soft tissue: an elliptical cylinder with shoulders, a neck and arms held a little away."""
    x, y = _axes()
    r = np.abs(x)
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


def _wall(traits: _Traits) -> Plane:
    """Distance inwards from the lateral wall of the thorax, which closes at the apex."""
    x, y = _axes()
    down = np.clip((y - traits["apex"]) / (traits["diaphragm"] + 0.3 - traits["apex"]), 0, 1)
    return np.asarray(traits["width"] * np.sqrt(1 - (1 - down) ** 2.6) - np.abs(x))


def _lung(traits: _Traits) -> Plane:
    """How much air lies in the way: 0 outside the lungs, towards 1 deep inside."""
    x, y = _axes()
    r = np.abs(x)
    medial = r - 0.1 - 0.14 * np.exp((traits["apex"] - y) / 0.1)
    top = 0.3  # where a dome is highest; it falls faster towards the side
    from_top = np.where(r > top, 1.45, 0.45) * (r - top) ** 2 * traits["dome"]
    dome = traits["diaphragm"] + 0.05 * (x > 0) + from_top - y
    # A smooth minimum: a hard one would leave creases where two borders meet.
    borders = np.stack([_wall(traits), medial, dome])
    inside = -0.012 * np.log(np.exp(-np.clip(borders, -0.5, 0.5) / 0.012).sum(axis=0))
    deep = 1 - np.exp(-np.maximum(inside, 0) / 0.16)
    return np.asarray(_edge(inside, 0.007) * (0.45 + 0.55 * deep), dtype=np.float32)


def _heart(traits: _Traits) -> Plane:
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


def _mediastinum(traits: _Traits) -> Plane:
    """Great vessels in the middle, and the dark trachea above its fork."""
    x, y = _axes()
    dx = np.abs(x - 0.5 * traits["midline"])
    trachea = _edge(0.045 - dx, 0.012) * _edge(traits["apex"] + 0.36 - y, 0.04)
    return np.asarray(0.1 * np.exp(-((dx / 0.15) ** 2)) - 0.09 * trachea)


def _spine(traits: _Traits) -> Plane:
    """A column of vertebrae with brighter end plates and dark discs between them."""
    x, y = _axes()
    step = y / traits["vertebra"]
    along = np.abs(step - np.round(step))
    half = 0.075 + 0.012 * np.cos(2 * np.pi * step)
    column = _edge(half - np.abs(x - traits["midline"]), 0.012)
    plates = 0.05 * np.exp(-(((along - 0.36) / 0.06) ** 2)) - 0.05 * _edge(along - 0.43, 0.03)
    return np.asarray(column * (0.16 + 1.6 * plates))


def _ribs(traits: _Traits) -> Plane:
    """Posterior ribs, fainter anterior ones, and the bright rim where they turn round."""
    x, y = _axes()
    r = np.abs(x)
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


def _comb(index: Plane, count: int) -> Plane:
    """Bars at the integers 0 to ``count - 1`` of a rib index, with brighter edges."""
    nearest = np.round(index)
    off = np.abs(index - nearest)
    bar = _edge(0.25 - off, 0.03) * (0.5 + 8.0 * off**2)
    return np.asarray(bar * ((nearest >= 0) & (nearest < count)))


def _clavicles(traits: _Traits) -> Plane:
    """Two S-shaped bars from the breastbone to the shoulders."""
    x, y = _axes()
    r = np.abs(x)
    middle = traits["clavicle"] - 0.14 * r + 0.035 * np.sin(6.5 * r) - 0.012 * np.sign(x)
    off = np.abs(y - middle) / (0.035 - 0.012 * np.sin(3.8 * r))
    bar = _edge(1 - off, 0.1) * (0.5 + 0.5 * np.minimum(off, 1) ** 2)
    return np.asarray(0.2 * bar * _edge(r - 0.06, 0.01) * _edge(0.86 - r, 0.02))


def _vessels(rng: np.random.Generator) -> Plane:
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


def _texture(rng: np.random.Generator, scales: tuple[float, ...]) -> Plane:
    """Noise with structure at several scales (pixels), of unit variance in all."""
    total = np.zeros((CANVAS, CANVAS), dtype=np.float32)
    for scale in scales:
        white = rng.standard_normal(total.shape, dtype=np.float32)
        layer = ndimage.gaussian_filter(white, scale, truncate=2.5, mode="wrap")
        total += layer / layer.std()
    return np.asarray(total / np.sqrt(len(scales)))


def _opacities(rng: np.random.Generator, lung: Plane) -> Plane:
    """Share of air lost: two to five soft, ragged clouds, mostly low, some of them faint."""
    x, y = _axes()
    weight = (lung > _DEEP) * np.exp(1.8 * y)
    places = rng.choice(lung.size, size=rng.integers(2, 6), p=(weight / weight.sum()).ravel())
    cloud = np.zeros_like(lung)
    for place in places:
        centre = (float(x.flat[place]), float(y.flat[place]))
        axes = tuple(rng.uniform(0.14, 0.32, 2))
        strength = rng.uniform(0.8, 1.6) if rng.random() > _FAINT else 0.35
        cloud += strength * np.exp(-_ellipse(centre, axes, rng.uniform(0, np.pi)))
    ragged = np.clip(1 + 0.5 * _texture(rng, (3, 6, 12)), 0, None)
    return np.asarray(1 - np.exp(-cloud * ragged), dtype=np.float32)
