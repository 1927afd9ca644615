"""What a report rests on is said, and only what applies."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from pipeline.data.leaks import OK, WARNING, Finding
from pipeline.shift.domains import Cohort, shared_patients
from pipeline.shift.provenance import Circumstances, caveats, digest_rows

QUIET = Circumstances(
    shared_patients=0,
    patients={"source": 500, "target": 100},
    score_changed=False,
)


def test_a_study_without_trouble_has_no_caveat():
    """A check that found nothing is none either."""
    fine = Finding(check="copies", severity=OK, where="source", text="no copy")
    assert caveats(QUIET, [fine]) == ()


def test_each_trouble_has_its_sentence():
    """Shared ids, few patients, a changed score, and what the checks found."""
    found = Finding(check="copies", severity=WARNING, where="there", text="2 copies in it")
    said = caveats(
        Circumstances(
            shared_patients=3,
            patients={"source": 500, "target": 99},
            score_changed=True,
        ),
        [found],
    )
    pieces = (
        "3 patient ids are in both",
        "The target has 99 patients",
        "must not be used",
        "there: 2 copies in it.",
    )
    assert len(said) == len(pieces)
    for sentence, piece in zip(said, pieces, strict=True):
        assert piece in sentence


def test_the_digest_is_of_images_with_labels_in_any_order():
    """Another order is the same input; another label or image is another."""
    keys, labels = [b"a", b"b", b"c"], np.array([0, 1, 1])
    first = digest_rows(keys, labels)
    assert digest_rows(keys[::-1], labels[::-1]) == first
    assert digest_rows(keys, labels[::-1]) != first
    assert digest_rows([b"a", b"b", b"d"], labels) != first


def test_what_was_found_of_another_target_is_no_caveat_of_this_one():
    """A patient shared by the source and `far` says nothing of `near`."""
    shared = Finding(
        check="patients", severity="warning", where="source and far", text="1 patient id"
    )
    here = Circumstances(shared_patients=0, patients={}, score_changed=False)
    assert any("1 patient id" in one for one in caveats(here, [shared]))
    assert not caveats(replace(here, elsewhere=frozenset({"far"})), [shared])


def test_the_name_of_a_file_is_no_shared_patient():
    """Where no pattern tells the patients, two hospitals that number alike share nobody."""

    def cohort(*groups):
        n = len(groups)
        return Cohort(
            features=np.zeros((n, 1)), probabilities=np.ones((n, 1)), groups=np.array(groups)
        )

    samples = SimpleNamespace(items=[SimpleNamespace(path="ill/img_0.png")])
    here, there = cohort("ill/img_0.png", "p1"), cohort("ill/img_0.png", "p1", "p2")
    assert shared_patients(samples, here, there) == 1
