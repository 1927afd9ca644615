"""The report of stage 4 in Markdown: names, numbers and classes as a reader wants them."""

from pipeline.report.text_tables import prose, table


def test_what_is_zero_but_for_rounding_is_zero():
    """Nobody wants to know how many bits of a sum were lost; small values stay."""
    rows = [{"a": -4.441e-18}, {"a": 1.11e-16}, {"a": 1e-8}, {"a": 0.25}]
    assert table(rows, ()) == ["| a |", "|---|", "| 0 |", "| 0 |", "| 1e-08 |", "| 0.25 |"]


def test_classes_have_their_names():
    """In rows that are about one; with a name that is no markup."""
    found = table(
        [
            {"a": "class 1"},
            {"a": "mmd|class=0"},
            {"a": "prevalence of class 1"},
            {"a": "class mix"},
        ],
        ("well", "[ill]"),
    )
    assert found[2:] == [
        "| class [ill] |",
        "| mmd in class well |",
        "| prevalence of class [ill] |",
        "| class mix |",
    ]


def test_commands_in_a_sentence_stay_code():
    """Names beside them do not become any."""
    said = prose("`x`: run `headrace audit STUDY`, *y*")
    assert said == "\\`x\\`: run `headrace audit STUDY`, \\*y\\*"
