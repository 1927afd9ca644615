"""Write the demo: generated chest radiographs of two hospitals, and their study file.

The two differ in what :class:`pipeline.demo.hospital.Hospital` declares and in nothing
else, so what a stage says about the gap can be compared with the truth. The pictures
are phantoms: nothing in them says anything about patients.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from pipeline.demo.hospital import Hospital, expose
from pipeline.demo.phantom import CLASSES, Patient, chest
from pipeline.errors import StudyError

SITES = ("hospital_a", "hospital_b")
STUDY = "study.toml"
_PARTIAL = "study.toml.partial"
_TITLE = "# Generated chest radiographs of two hospitals; written by `headrace demo`."
#: What a demo may have written: anything else in the folder is somebody else's.
_WRITTEN = re.compile(
    rf"study\.toml(\.partial)?|({'|'.join(SITES)})\.csv|"
    rf"({'|'.join(SITES)})(/({'|'.join(CLASSES)})(/patient\d+_\d+\.png)?)?"
)

SOURCE = Hospital()
#: The default target: brighter, noisier, softer, closer, with a marker on half of the
#: images of either class, and with fewer ill patients.
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


@dataclass(frozen=True, kw_only=True)
class DemoSpec:
    """All that determines the demo, to the byte.

    Attributes:
        seed: Seed of everything random, 0 or more; also the study's seed.
        source: The hospital with the training images, ``hospital_a``.
        target: The hospital the model is taken to, ``hospital_b``.
        n_source: Images of the source; a patient has 1 to 3 of them.
        n_target: Images of the target.
        size: Edge of an image in pixels.

    Raises:
        StudyError: The seed is negative.
    """

    seed: int = 0
    source: Hospital = SOURCE
    target: Hospital = TARGET
    n_source: int = 400
    n_target: int = 200
    size: int = 224

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise StudyError(f"demo has seed = {self.seed}; allowed is 0 or more")


def cohort(spec: DemoSpec, site: str) -> list[tuple[Patient, int]]:
    """List the patients of one hospital.

    Args:
        spec: The demo.
        site: One of :data:`SITES`.

    Returns:
        Patients with their number of images, 1 to 3, which add up to the hospital's.
        No patient is at both hospitals: the source has the odd numbers.
    """
    number, hospital, images = (
        (1, spec.source, spec.n_source) if site == SITES[0] else (2, spec.target, spec.n_target)
    )
    counts: dict[Patient, int] = {}
    while (left := images - sum(counts.values())) > 0:
        patient = Patient(name=f"patient{number:04d}", label=CLASSES[0], seed=spec.seed)
        counts[patient] = min(left, int(patient.stream("visits").integers(1, 4)))
        number += 2
    # Who falls ill first is drawn once: another prevalence moves the line, not the order.
    wanted, ill = round(hospital.prevalence * images), set()
    for patient in sorted(counts, key=lambda patient: patient.stream("risk").random()):
        if counts[patient] <= wanted:
            wanted -= counts[patient]
            ill.add(patient)
    return [(replace(p, label=CLASSES[p in ill]), count) for p, count in counts.items()]


def write_demo(
    folder: Path, spec: DemoSpec = DemoSpec(), *, backbone: str = "efficientnet_lite0"
) -> Path:
    """Write both hospitals' images and their study file; an older demo there is replaced.

    Args:
        folder: Becomes ``hospital_a/{normal,pneumonia}/patient0001_1.png`` and so on
            (8-bit grey), ``hospital_a.csv`` (sex and age of its patients), ``hospital_b/...``
            and ``study.toml``. Made when missing.
        spec: What to write. The same spec gives the same bytes.
        backbone: Name of the study's one backbone.

    Returns:
        Path of the study file.

    Raises:
        StudyError: The folder holds something that no demo wrote; nothing is changed.
    """
    stale = _older_demo(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The study comes last: where it exists, its images are complete. Until then its
    # text says to the next run that what it meets is a demo, cut short.
    partial = folder / _PARTIAL
    partial.write_text(_study_text(spec, backbone), encoding="utf-8", newline="\n")
    for path in stale:
        path.unlink(missing_ok=True)
    for site, hospital in zip(SITES, (spec.source, spec.target), strict=True):
        patients = cohort(spec, site)
        for label in CLASSES:
            (folder / site / label).mkdir(parents=True, exist_ok=True)
        for patient, images in patients:
            drawn = chest(patient)
            for visit in range(1, images + 1):
                image = expose(drawn, patient, hospital, visit=visit, size=spec.size)
                path = folder / site / patient.label / f"{patient.name}_{visit}.png"
                # Level 1: grain hardly compresses, and the default level takes 3 x as long.
                Image.fromarray(image).save(path, compress_level=1)
        lines = ["patient,sex,age", *(_attributes(patient) for patient, _ in patients), ""]
        (folder / f"{site}.csv").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return partial.replace(folder / STUDY)


def _older_demo(folder: Path) -> list[Path]:
    """List the files of an older demo; refuse a folder that holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder} is a file; the demo needs a folder: choose another name")
    studies = [path for name in (STUDY, _PARTIAL) if (path := folder / name).is_file()]
    is_demo = any(study.read_bytes().startswith(_TITLE.encode()) for study in studies)
    paths = sorted(folder.rglob("*"))
    for path in (path.relative_to(folder) for path in paths):
        if not (is_demo and _WRITTEN.fullmatch(path.as_posix())):
            raise StudyError(
                f"{folder} holds {path}, which no demo wrote; allowed is a new or empty folder, "
                "or an older demo alone: choose another folder"
            )
    return [path for path in paths if path.is_file() and path.name != _PARTIAL]


def _attributes(patient: Patient) -> str:
    """Sex and age, drawn apart from all that is in the pictures: no group is worse in truth."""
    rng = patient.stream("attributes")
    return f"{patient.name},{'FM'[rng.integers(2)]},{rng.integers(18, 91)}"


def _study_text(spec: DemoSpec, backbone: str) -> str:
    group = r"group = '^(patient\d+)'"
    return f"""\
{_TITLE}
name = "demo"
seed = {spec.seed}

[source]
path = "{SITES[0]}"
{group}
attributes = "{SITES[0]}.csv"
validation = 0.2

[target.{SITES[1]}]
path = "{SITES[1]}"
{group}
attributes = "{SITES[1]}.csv"

[subgroups]
sex = true
age = [40, 65]

[backbone.{backbone}]
"""
