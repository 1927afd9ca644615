"""What a study found at a glance: one head, one sentence, the status of four checks."""

import pytest

from pipeline.report.summary import (
    aurocs_of_findings,
    headline,
    headline_of_findings,
    models,
    page_head,
    status,
    status_of_findings,
)


def heads_of(*backbones, patients=200, ill=19, column="head"):
    """A record of heads: by backbone, accuracy by domain of each head; the first is the best."""
    return {
        "backbones": [
            {
                "backbone": f"net{k}",
                "best": next(iter(accuracy)),
                "heads": [{"head": name} for name in accuracy],
                "domains": [
                    {
                        "domain": domain,
                        "role": ROLES.get(domain, "target"),
                        "patients": patients,
                        "class_patients": [patients - ill, ill],
                        "rows": [
                            {column: head, "scores": {"accuracy": value(of_head[domain])}}
                            for head, of_head in accuracy.items()
                        ],
                    }
                    for domain in next(iter(accuracy.values()))
                ],
            }
            for k, accuracy in enumerate(backbones)
        ]
    }


ROLES = {"source": "validation", "b": "target"}


def value(estimate, width=0.03):
    return {"estimate": estimate, "low": estimate - width, "high": estimate + width}


def shift_of(loss, gap, target="b", p=0.5, head="mlp", source=0.96):
    effects = {"accuracy_loss": loss, "transfer_gap": gap}
    return {
        "targets": [
            {
                "backbone": "net0",
                "target": target,
                "head": head,
                "accuracy": {"source": source},
                "effects": [{"name": name, **value(size)} for name, size in effects.items()],
                "detection": [{"p_adjusted": p}],
            }
        ]
    }


def audit_of(leak=0, **severities):
    results = [{"check": c.replace("_", " "), "severity": s} for c, s in severities.items()]
    return {"counts": {"leak": leak}, "results": results}


def records_of(audit, shift, heads):
    """By stage, of those that were run."""
    records = {"audit": audit, "shift": shift, "heads": heads}
    return {stage: record for stage, record in records.items() if record}


NOT_REGAINED = "Training on b is not shown to regain the loss."
FALLS = "Accuracy falls from 96 % on new patients of the source to"
IS = "Accuracy is 96 % on new patients of the source."
FALLS_LESS = "Accuracy falls from 92 % on new patients of the source to"
IS_LESS = "Accuracy is 84 % on new patients of the source."
NO_LOSS = "where no loss is shown."
REGAINED = "Training on the target would regain most of the loss on b."
MOST = f"{REGAINED} No leak was found."
LEAK = "Images or patients are in both training and test data: do not trust the numbers here."


@pytest.mark.parametrize(
    ("targets", "shift", "audit", "sentence"),
    [
        ({"b": 0.82}, shift_of(0.14, 0.12), audit_of(), f"{FALLS} 82 % on b. {MOST}"),
        ({"b": 0.82, "c": 0.95}, None, None, f"{FALLS} 82 % on b. It is 95 % on c."),
        ({"b": 0.94}, shift_of(0.05, 0.01), None, f"{FALLS} 94 % on b. {NOT_REGAINED}"),
        ({"b": 0.94}, shift_of(0.05, 0.04, head="svm"), None, f"{IS} It is 94 % on b."),
        ({"b": 0.94}, shift_of(0.02, 0.01), None, f"{IS} It is 94 % on b, {NO_LOSS}"),
        (
            {"b": 0.82},
            shift_of(0.1, 0.08, source=0.92),
            None,
            f"{FALLS_LESS} 82 % on b. {REGAINED}",
        ),
        (
            {"b": 0.82},
            shift_of(0.02, 0, source=0.84),
            None,
            f"{IS_LESS} It is 82 % on b, {NO_LOSS}",
        ),
        ({}, None, audit_of(leak=1), f"{LEAK} {IS}"),
        (None, None, audit_of(), "No head has been compared yet. No leak was found."),
    ],
)
def test_the_sentence_says_what_the_intervals_allow(targets, shift, audit, sentence):
    """A loss is that of shift, from its accuracy on the source, or where intervals lie apart."""
    heads = None if targets is None else heads_of({"mlp": {"source": 0.96, **targets}})
    assert headline(records_of(audit, shift, heads), page_head(heads)) == sentence


def test_the_head_of_the_page_is_the_best_on_validation_of_all_backbones():
    """Whatever it is worth on a target; the figure compares it with linear and the best network."""
    heads = heads_of(
        {"mlp": {"source": 0.9, "b": 0.9}},
        {"svm": {"source": 0.95, "b": 0.5}, "linear": {"source": 0.94, "b": 0.6}},
    )
    head = page_head(heads)
    assert (head.name, head.backbone, *head.accuracy) == ("svm", "net1", "validation", "b")
    methods = {"lp": (0.99, 0.9), "full": (0.9, 0.7), "tip": (0.8, 0.9)}
    of_methods = {name: {"source": at[0], "b": at[1]} for name, at in methods.items()}
    trained = heads_of(of_methods, of_methods, column="method")
    series = models({"heads": heads, "finetune": trained}, head)
    assert list(series) == ["svm", "linear", "full, fine-tuned"]
    assert [of["b"][0] for of in series.values()] == [0.5, 0.6, 0.7]


MLP = heads_of({"mlp": {"source": 0.9, "b": 0.8}})


RARE = heads_of({"mlp": {"source": 0.9}}, ill=3)
FEW = heads_of({"mlp": {"source": 0.9}}, patients=38)
CLEAN, UNCLEAR = audit_of(border="ok", file_properties="ok"), audit_of(border="note")
BIASED = audit_of(leak=2, border="warning", corners="ok")


def of_linear(loss, p):
    """Shift may have analysed a head that is not the head of the page."""
    return shift_of(loss, 0.0, head="linear", p=p)


@pytest.mark.parametrize(
    ("audit", "shift", "heads", "words"),
    [
        (None, None, None, "not checked, not tested, not analysed, not counted"),
        (CLEAN, shift_of(0.01, 0.0), None, "none, no sign, none shown, not counted"),
        (
            None,
            None,
            RARE,
            "not checked, not tested, not analysed, only 3 of a class in validation",
        ),
        (BIASED, None, FEW, "found, possible, not analysed, only 38 in validation"),
        (
            UNCLEAR,
            shift_of(0.0, 0.0, p=0.01),
            None,
            "none, inconclusive, images differ, not counted",
        ),
        (None, of_linear(0.2, 0.5), MLP, "not checked, not tested, accuracy falls, yes"),
        (None, of_linear(0.02, 0.01), MLP, "not checked, not tested, images differ, yes"),
        (None, of_linear(0.02, 0.5), MLP, "not checked, not tested, another head analysed, yes"),
    ],
)
def test_each_light_has_a_word(audit, shift, heads, words):
    """Green, orange, red or unknown, for those who see no colour too."""
    shown = status(records_of(audit, shift, heads), page_head(heads))
    assert [name for name, *_ in shown] == ["Leaks", "Shortcuts", "Shift", "Enough patients"]
    assert ", ".join(word for *_, word in shown) == words
    for _, state, word in shown:
        assert word in WORDS[state] or (state == "unknown" and word.startswith("not "))


WORDS = {
    "good": ("none", "no sign", "none shown", "yes"),
    "warn": (
        "possible",
        "images differ",
        "only 38 in validation",
        "only 3 of a class in validation",
    ),
    "bad": ("found", "accuracy falls"),
    "unknown": ("inconclusive", "another head analysed"),
}


def test_over_findings_the_range_of_aurocs_is_said():
    """Of each finding that backbone counts whose best head is best on validation."""
    rows = [
        {"finding": finding, "backbone": backbone, "domain": domain, "role": role}
        | {"accuracy": value(accuracy), "auroc": value(auroc)}
        | {"p": None if finding == "Hernia" else 0.5}
        for finding, backbone, accuracy, *aurocs in (
            ("Edema", "net0", 0.9, 0.95, 0.9),
            ("Edema", "net1", 0.8, 0.99, 0.99),
            ("Mass", "net0", 0.9, 0.7, 0.6),
            ("Hernia", "net0", 0.9, 1.0, 0.5),
        )
        for (domain, role), auroc in zip(ROLES.items(), aurocs, strict=True)
    ]
    series = aurocs_of_findings(rows)
    assert [*series["b"]] == ["Edema", "Mass", "Hernia"]
    assert series["b"]["Mass"] == (0.6, 0.57, 0.63)
    left_out = "A finding with fewer than 10 patients of a class has no AUROC here."
    assert headline_of_findings(3, rows) == (
        "The study has 3 findings, each with its own page. AUROC is 0.70 (Mass) to 0.95 (Edema) on "
        f"new patients of the source and 0.60 (Mass) to 0.90 (Edema) on b. {left_out}"
    )
    assert headline_of_findings(2, rows[:-2]).endswith("to 0.90 (Edema) on b.")
    assert headline_of_findings(1, rows[-2:]).endswith(f"its own page. {left_out}")


def test_of_each_check_the_worst_status_of_the_findings_is_shown():
    """And of how many it is, where not of all."""
    good, bad = ("Shift", "good", "none shown"), ("Shift", "bad", "accuracy falls")
    assert status_of_findings([[good], [bad], [bad]]) == [
        ("Shift", "bad", "accuracy falls (2 of 3 findings)")
    ]
    assert status_of_findings([[good], [good]]) == [good]
