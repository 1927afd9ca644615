"""What a study found at a glance: one head, one sentence, four lights."""

import pytest

from pipeline.report.summary import (
    aurocs_of_findings,
    headline,
    headline_of_findings,
    lights,
    lights_of_findings,
    models,
    page_head,
)


def heads_of(*backbones, patients=200):
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
                        "role": "validation" if domain == "source" else "target",
                        "patients": patients,
                        "rows": [
                            {"head": head, "scores": {"accuracy": value(of_head[domain])}}
                            for head, of_head in accuracy.items()
                        ],
                    }
                    for domain in next(iter(accuracy.values()))
                ],
            }
            for k, accuracy in enumerate(backbones)
        ]
    }


def value(estimate, width=0.03):
    return {"estimate": estimate, "low": estimate - width, "high": estimate + width}


def shift_of(loss, gap, target="b", p=0.5, head="mlp"):
    effects = {"accuracy_loss": loss, "transfer_gap": gap}
    return {
        "targets": [
            {
                "backbone": "net0",
                "target": target,
                "head": head,
                "effects": [{"name": name, **value(size)} for name, size in effects.items()],
                "detection": [{"p_adjusted": p}],
            }
        ]
    }


def audit_of(leak=0, **severities):
    findings = [{"check": c.replace("_", " "), "severity": s} for c, s in severities.items()]
    return {"counts": {"leak": leak}, "findings": findings}


def say(accuracy, **more):
    heads = heads_of({"mlp": accuracy})
    return headline({"heads": heads, **more}, page_head(heads))


@pytest.mark.parametrize(
    ("accuracy", "more", "sentence"),
    [
        (
            {"source": 0.96, "b": 0.82},
            {"shift": shift_of(0.14, 0.12), "audit": audit_of()},
            (
                "Accuracy falls from 96 % on new patients of the source to 82 % on b. Most of the "
                "loss on b would be regained by training there. No leak was found."
            ),
        ),
        (
            {"source": 0.96, "b": 0.82, "c": 0.95},
            {},
            (
                "Accuracy falls from 96 % on new patients of the source to 82 % on b. "
                "It is 95 % on c."
            ),
        ),
        (
            {"source": 0.96, "b": 0.94},
            {"shift": shift_of(0.05, 0.01)},
            (
                "Accuracy falls from 96 % on new patients of the source to 94 % on b. "
                "Training on b is not shown to regain the loss."
            ),
        ),
        (
            {"source": 0.96, "b": 0.94},
            {"shift": shift_of(0.05, 0.04, head="svm")},
            "Accuracy is 96 % on new patients of the source. It is 94 % on b.",
        ),
        (
            {"source": 0.96, "b": 0.94},
            {"shift": shift_of(0.02, 0.01)},
            (
                "Accuracy is 96 % on new patients of the source. "
                "It is 94 % on b, where no loss is shown."
            ),
        ),
        (
            {"source": 0.96},
            {"audit": audit_of(leak=1)},
            (
                "Images or patients leak: do not trust the numbers on this page. "
                "Accuracy is 96 % on new patients of the source."
            ),
        ),
    ],
)
def test_the_sentence_says_what_the_intervals_allow(accuracy, more, sentence):
    """A loss is one that shift shows, or where intervals lie apart; a leak comes first."""
    assert say(accuracy, **more) == sentence


def test_without_heads_there_is_a_sentence_too():
    """A page may be of features alone."""
    assert headline({"audit": audit_of()}, page_head(None)) == (
        "No head has been compared yet. No leak was found."
    )


def test_the_head_of_the_page_is_the_best_on_validation_of_all_backbones():
    """Whatever it is worth on a target; the figure compares it with linear and the best network."""
    heads = heads_of(
        {"mlp": {"source": 0.9, "b": 0.9}},
        {"svm": {"source": 0.95, "b": 0.5}, "linear": {"source": 0.94, "b": 0.6}},
    )
    head = page_head(heads)
    assert (head.name, head.backbone, *head.accuracy) == ("svm", "net1", "validation", "b")
    methods = {"lp": (0.99, 0.9), "full": (0.9, 0.7), "tip": (0.8, 0.9)}
    domains = [
        {
            "domain": domain,
            "role": role,
            "rows": [
                {"method": method, "scores": {"accuracy": value(accuracy[k])}}
                for method, accuracy in methods.items()
            ],
        }
        for k, (domain, role) in enumerate((("source", "validation"), ("b", "target")))
    ]
    trained = {"backbones": [{"backbone": "net1", "domains": domains}]}
    series = models({"heads": heads, "finetune": trained}, head)
    assert list(series) == ["svm", "linear", "full, fine-tuned"]
    assert {name: of["b"][0] for name, of in series.items()} == {
        "svm": 0.5, "linear": 0.6, "full, fine-tuned": 0.7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shift", "light"),
    [
        (shift_of(0.2, 0.1, head="linear"), ("bad", "accuracy falls")),
        (shift_of(0.02, 0.0, head="linear"), ("unknown", "another head analysed")),
        (shift_of(0.02, 0.0, head="linear", p=0.01), ("warn", "images differ")),
        (shift_of(0.02, 0.0), ("good", "none shown")),
    ],
)
def test_a_loss_of_another_head_is_no_green_light(shift, light):
    """Shift may have analysed a head that is not the head of the page."""
    heads = heads_of({"mlp": {"source": 0.9, "b": 0.8}})
    shown = lights({"heads": heads, "shift": shift}, page_head(heads))
    assert ("Shift", *light) in shown


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ({}, ["not checked", "not tested", "not analysed", "not counted"]),
        (
            {
                "audit": audit_of(border="ok", file_properties="ok", patients="ok"),
                "shift": shift_of(0.01, 0.0),
                "heads": heads_of({"mlp": {"source": 0.9}}),
            },
            ["none", "no sign", "none shown", "yes"],
        ),
        (
            {
                "audit": audit_of(leak=2, border="warning", corners="ok"),
                "shift": shift_of(0.1, 0.0),
                "heads": heads_of({"mlp": {"source": 0.9}}, patients=38),
            },
            ["found", "possible", "accuracy falls", "only 38 in one domain"],
        ),
        (
            {"audit": audit_of(border="note"), "shift": shift_of(0.0, 0.0, p=0.01)},
            ["none", "open", "images differ", "not counted"],
        ),
    ],
)
def test_each_light_has_a_word(records, words):
    """Green, orange, red or unknown, for those who see no colour too."""
    shown = lights(records, page_head(records.get("heads")))
    names, states, shown_words = map(list, zip(*shown, strict=True))
    assert names == ["Leaks", "Shortcuts", "Shift", "Enough patients"]
    assert shown_words == words
    assert {*states} <= {"good", "warn", "bad", "unknown"}


def test_over_findings_the_range_of_aurocs_is_said():
    """Of each finding that backbone counts whose best head is best on validation."""
    rows = [
        {"finding": finding, "backbone": backbone, "domain": domain, "role": role}
        | {"accuracy": value(accuracy), "auroc": value(auroc)}
        for finding, backbone, accuracy, on_source, on_target in (
            ("Edema", "net0", 0.9, 0.95, 0.9),
            ("Edema", "net1", 0.8, 0.99, 0.99),
            ("Mass", "net0", 0.9, 0.7, 0.6),
        )
        for domain, role, auroc in (
            ("source", "validation", on_source),
            ("b", "target", on_target),
        )
    ]
    series = aurocs_of_findings(rows)
    assert series["b"] == {"Edema": (0.9, 0.87, 0.93), "Mass": (0.6, 0.57, 0.63)}
    assert headline_of_findings(2, series) == (
        "2 findings an image, each with a page of its own. AUROC is 0.70 (Mass) to 0.95 (Edema) on "
        "new patients of the source and 0.60 (Mass) to 0.90 (Edema) on b."
    )
    of_one = {"b": {"Mass": (0.6, None, None)}}
    assert headline_of_findings(1, of_one).endswith("page of its own. AUROC is 0.60 (Mass) on b.")


def test_of_each_light_the_worst_of_the_findings_is_shown():
    """And of how many it is, where not of all."""
    good, bad = ("Shift", "good", "none shown"), ("Shift", "bad", "accuracy falls")
    assert lights_of_findings([[good], [bad], [bad]]) == [
        ("Shift", "bad", "accuracy falls (2 of 3 findings)")
    ]
    assert lights_of_findings([[good], [good]]) == [good]
