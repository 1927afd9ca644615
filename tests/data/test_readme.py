"""Every study of the room's README reads generated files of its layout."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.compare import CompareOptions, compare
from pipeline.data.attributes import groupings
from pipeline.data.samples import load_samples
from pipeline.features.extract import extract
from pipeline.init import write_study
from pipeline.predict import predict
from pipeline.study import Study
from pipeline.study_file import load_study
from tests.image_files import dicom, encoded
from tests.tiny import TORCH

README = Path(__file__).parents[2] / "pipeline/data/README.md"
BLOCKS = dict(re.findall(r"(?ms)^## (.*?)$.*?```toml\n(.*?)```", README.read_text()))
RNG = np.random.default_rng(0)


def picture(bright: int, dtype=np.uint8, channels: int = 0) -> np.ndarray:
    """A picture whose class can be seen, 32 x 32."""
    shape = (32, 32, channels) if channels else (32, 32)
    return np.clip(RNG.normal(90 + 70 * bright, 25, shape), 0, 255).astype(dtype)


def image(path: str, bright: int, file_format: str = "PNG") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(encoded(picture(bright), file_format))


def dicom_image(path: str, bright: int, patient: int = 0) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    values = picture(bright, np.uint16) * 16
    Path(path).write_bytes(dicom(values, PatientID=f"J-{patient}", **window))


def class_folders() -> None:
    for site, count in (("a", 20), ("b", 8)):
        for i in range(count):
            image(f"hospital_{site}/{'xy'[i % 2]}/deep/patient{i // 2:03}_{i}.png", i % 2)


def table(file: str, *lines: str) -> None:
    Path(file).write_text("\n".join(lines))


def tuberculosis() -> None:
    for hospital, name, count in (("ChinaSet_AllFiles", "CHN", 20), ("MontgomerySet", "MCU", 8)):
        for i in range(count):
            image(f"{hospital}/CXR_png/{name}CXR_{i:04}_{i % 2}.png", i % 2)
            image(f"{hospital}/ManualMask/leftMask/{name}CXR_{i:04}_{i % 2}.png", i % 2)
        (Path(hospital) / "CXR_png/Thumbs.db").write_text("no image")


def mura() -> None:
    for split, count in (("train", 20), ("valid", 8)):
        for i in range(count):
            patient = f"{split}/XR_WRIST/patient{i // 2 + 100 * count:05}"
            study = f"study{i % 2}_{('negative', 'positive')[i % 2]}"
            image(f"MURA-v1.1/{patient}/{study}/image1.png", i % 2)


def kaggle() -> None:
    for split, count in (("train", 20), ("val", 4), ("test", 8)):
        for i in range(count):
            name = f"{split}/PNEUMONIA/person{i}_virus_{i}" if i % 2 else f"{split}/NORMAL/IM-{i}-1"
            image(f"chest_xray/{name}.jpeg", i % 2, "JPEG")


def chexpert() -> None:
    for split, count in (("train", 24), ("valid", 8)):
        lines = ["Path,Sex,Age,Edema,Pneumonia"]
        for i in range(count):
            path = f"CheXpert-v1.0-small/{split}/patient{split}{i // 2}/study1/view{i}_frontal.jpg"
            path = path.replace(f"patient{split}", "patient1" if split == "train" else "patient2")
            image(path, i % 2, "JPEG")
            mark = ("0.0", "1.0")[i % 2] if i < count - 2 else ("-1.0", "")[i % 2]
            lines.append(
                f"{path},{'Male' if i % 3 else 'Female'},{10 * i},{1.0 if i % 3 else ''},{mark}"
            )
        table(f"CheXpert-v1.0-small/{split}.csv", *lines)


def nih() -> None:
    """Images of the last patients are the test list's."""
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,OriginalImage[Width,Height],"]
    for i in range(24):
        name = f"{i // 2:08}_{i % 2:03}.png"
        image(f"nih/images_{i % 3:03}/images/{name}", i % 2)
        finding = "No Finding" if i % 2 == 0 else "Effusion|Pneumonia" if i < 20 else "Mass"
        lines.append(f"{name},{finding},0,{i // 2},32,32,")
    table("nih/Data_Entry_2017.csv", *lines)
    names = [line.partition(",")[0] for line in lines[1:]]
    table("nih/train_val_list.txt", *names[:16])
    table("nih/test_list.txt", *names[16:])


def vinbig() -> None:
    """A row for each box and reader; half of the images have one row."""
    lines = ["image_id,class_name,class_id,rad_id,x_min"]
    for i in range(20):
        dicom_image(f"vinbig/train/{i}f.dicom", i % 2)
        found = ("Cardiomegaly", "Nodule") if i % 2 else ("No finding",)
        lines += [f"{i}f,{name},3,R{k},7.5" for name in found for k in (8, 9)]
    table("vinbig/train.csv", *lines)


def covid() -> None:
    for i in range(20):
        for kind in ("images", "masks"):
            name = ("COVID", "Normal")[i % 2]
            image(f"COVID-19_Radiography_Dataset/{name}/{kind}/{name}-{i}.png", i % 2)


def medmnist() -> None:
    arrays = {}
    for split, count in (("train", 20), ("val", 8), ("test", 8)):
        label = np.arange(count) % 2
        arrays[f"{split}_images"] = np.stack([picture(k, channels=3)[:28, :28] for k in label])
        arrays[f"{split}_labels"] = label[:, None].astype(np.uint8)
    np.savez_compressed("pneumoniamnist.npz", **arrays)


def chestmnist() -> None:
    """Two findings of fourteen can be seen; the second is of a third of the images."""
    arrays = {}
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        labels = RNG.integers(0, 2, (count, 14)).astype(np.uint8)
        labels[:, 0], labels[:, 2] = np.arange(count) % 2, np.arange(count) % 3 == 0
        arrays[f"{split}_labels"] = labels
        arrays[f"{split}_images"] = np.stack([picture(k)[:28, :28] for k in labels[:, 0]])
    np.savez_compressed("chestmnist.npz", **arrays)


def isic() -> None:
    lines = ["image,MEL,NV,BCC,UNK"]
    for i in range(24):
        image(f"isic/ISIC_2019_Training_Input/ISIC_{i:07}.jpg", i % 3, "JPEG")
        marks = [f"{float(i % 3 == k)}" for k in range(3)] if i < 21 else ["0.0"] * 3
        lines.append(",".join([f"ISIC_{i:07}", *marks, "0.0"]))
    Path("isic/ISIC_2019_Training_GroundTruth.csv").write_text("\n".join(lines))


def ham() -> None:
    lines = ["lesion_id,image_id,dx,age,sex"]
    for i in range(20):
        image(f"ham/HAM10000_images_part_{1 + i % 2}/ISIC_{i:07}.jpg", i // 2 % 2, "JPEG")
        lines.append(f"HAM_{i // 2},ISIC_{i:07},{('nv', 'mel')[i // 2 % 2]},50,male")
    Path("ham/HAM10000_metadata.csv").write_text("\n".join(lines))


def pcam() -> None:
    lines = ["id,label"]
    for i in range(20):
        image(f"pcam/train/f38a6{i:02}c.tif", i % 2, "TIFF")
        lines.append(f"f38a6{i:02}c,{i % 2}")
    Path("pcam/train_labels.csv").write_text("\n".join(lines))


def multi() -> None:
    lines = ["file\tdiagnosis\tsubject\tcentre"]
    for i in range(28):
        image(f"multi/scans/{i}.png", i % 2)
        site = "Oslo" if i < 20 else "Bergen"
        lines.append(f"scans/{i}.png\t{('well', 'ill')[i % 2]}\ts{i // 2}\t{site}")
    Path("multi/labels.tsv").write_text("\n".join(lines))


def dicom_folders() -> None:
    for i in range(20):
        dicom_image(f"dicom/{('well', 'ill')[i % 2]}/case{i // 2}/IM{i:06}", i % 2, i // 2)


def course() -> None:
    Path("course").mkdir()
    for k, name in enumerate(("normal", "pneumonia")):
        for split, count in (("train", 10), ("test", 4)):
            stack = np.stack([picture(k, np.float32) / 255 for _ in range(count)])
            np.save(f"course/{split}_{name}.npy", stack)


#: What writes the files; images of each domain and split; classes; patients of the source.
LAYOUTS: dict[str, tuple[Callable[[], None], dict[str, int], str, int]] = {
    "Class folders": (class_folders, {"source": 20, "hospital_b": 8}, "x y", 10),
    "Montgomery and Shenzhen": (tuberculosis, {"source": 20, "montgomery": 8}, "0 1", 20),
    "MURA": (mura, {"fit": 20, "validation": 8}, "negative positive", 14),
    "Kaggle chest X-ray pneumonia": (kaggle, {"source": 20, "kaggle": 8}, "NORMAL PNEUMONIA", 20),
    "CheXpert": (chexpert, {"fit": 22, "validation": 6}, "not Pneumonia Pneumonia", 14),
    "NIH ChestX-ray14": (nih, {"source": 16, "nih": 8}, "not Pneumonia Pneumonia", 8),
    "VinBigData": (vinbig, {"source": 20}, "not Nodule Nodule", 20),
    "COVID-19 Radiography Database": (covid, {"source": 20}, "COVID Normal", 20),
    "MedMNIST": (medmnist, {"fit": 20, "validation": 8, "official": 8}, "0 1", 28),
    "ChestMNIST": (
        chestmnist,
        {"fit": 24, "validation": 8, "official": 8},
        "not Atelectasis Atelectasis",
        32,
    ),
    "ISIC 2019": (isic, {"source": 21}, "BCC MEL NV", 21),
    "HAM10000": (ham, {"source": 20}, "mel nv", 10),
    "PatchCamelyon (Kaggle)": (pcam, {"source": 20}, "normal tumour", 20),
    "One table for several hospitals": (multi, {"source": 20, "Bergen": 8}, "ill well", 10),
    "DICOM folders": (dicom_folders, {"source": 20}, "ill well", 10),
    "NumPy arrays of a course": (course, {"source": 20, "course": 8}, "normal pneumonia", 20),
}


@pytest.fixture
def study_file(tiny_folder: Path, name: str) -> Path:
    """The README's study of the layout that a test names; the current folder has its files."""
    LAYOUTS[name][0]()
    file = tiny_folder / "study.toml"
    file.write_text(f'{BLOCKS[name]}[store]\npath = "features"\n[backbone.tiny]\n')
    return file


def labelled(study: Study) -> Study:
    """The study, of its first finding where it has several."""
    return study.of_finding(study.findings[0]) if study.findings else study


def test_every_layout_of_the_readme_is_tested():
    """No more and no fewer."""
    assert list(BLOCKS) == list(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_study_of_the_readme_finds_images_classes_and_patients(study_file, name):
    """As many of each as the files hold."""
    _, counts, classes, patients = LAYOUTS[name]
    study = labelled(load_study(study_file))
    samples, skipped = load_samples(study)
    found = {where: int((samples.domain == where).sum()) for where in set(samples.domain)}
    found |= {split: int((samples.split == split).sum()) for split in ("fit", "validation")}
    assert {where: found[where] for where in counts} == counts
    assert not skipped
    assert " ".join(samples.classes) == classes
    assert len(set(samples.group[samples.domain == "source"])) == patients
    for groups in groupings(study, samples, {}).values():
        assert "unknown" not in groups[0].names


@pytest.mark.parametrize(
    "name",
    [
        "CheXpert",
        "MedMNIST",
        "ChestMNIST",
        "PatchCamelyon (Kaggle)",
        "DICOM folders",
        "NumPy arrays of a course",
    ],
)
def test_each_kind_of_input_runs_to_the_heads(study_file, name):
    """Features, then a head that tells bright pictures from dark ones."""
    study = load_study(study_file)
    report = extract(study, TORCH)
    assert report["backbones"][0]["skipped"] == 0
    record = compare(labelled(study), CompareOptions(heads=("linear",), repeats=0, draws=99))
    assert "accuracy" in str(record)
    if name == "MedMNIST":  # the file itself can be classified, too
        head = study.results / "heads/tiny/linear"
        answer = predict(head, [study.source.path], store=study.store_root, engine=TORCH)
        assert (answer["computed"], len(answer["rows"])) == (0, 36)
    # Nothing of a DICOM header is in any file that was written.
    written = [f for folder in ("features", "results") for f in Path(folder).rglob("*")]
    for file in filter(Path.is_file, written):
        assert not any(word in file.read_bytes() for word in (b"Doe", b"J-0", b"J-1"))


@pytest.mark.parametrize(
    ("name", "data", "lines"),
    [
        ("MedMNIST", "pneumoniamnist.npz", ['split = "given"', "[test.test]", 'split = "test"']),
        (
            "ChestMNIST",
            "chestmnist.npz",
            ['findings = ["0", "1", "2", ', '"13"]', 'split = "given"', "[test.test]"],
        ),
        (
            "One table for several hospitals",
            "multi/labels.tsv",
            ['domain = "Oslo"', "[target.Bergen]", 'domain = "centre"', "validation = 0.2"],
        ),
        (
            "NIH ChestX-ray14",
            "nih/Data_Entry_2017.csv",
            ['findings = ["Effusion", "Mass", "Pneumonia"]'],
        ),
        ("VinBigData", "vinbig/train.csv", ['findings = ["Cardiomegaly", "Nodule"]']),
        ("CheXpert", "CheXpert-v1.0-small/train.csv", ['findings = ["Edema", "Pneumonia"]']),
        ("DICOM folders", "dicom", ['group = {header = "PatientID"}']),
        ("COVID-19 Radiography Database", "COVID-19_Radiography_Dataset", ['ignore = ["*/masks']),
    ],
)
def test_init_writes_a_study_of_each_kind_that_runs(study_file, name, data, lines):
    """Tables with a domain for each hospital, archives with their parts, DICOM with patients."""
    notes = write_study([Path(data)], Path("own.toml"), ["tiny"])
    text = Path("own.toml").read_text()
    assert all(line in text for line in lines), text
    samples, skipped = load_samples(load_study(Path("own.toml")))
    assert len(samples) >= 20
    assert not skipped
    found = f"[source] {(samples.domain == 'source').sum()} images"
    assert any(note.startswith(found) for note in notes)
    assert any("several findings" in note for note in notes) is ("findings = " in text)
