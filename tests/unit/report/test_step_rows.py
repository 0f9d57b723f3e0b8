"""Rows of post-training steps: blocks in the pages, steps alone in the terminal."""

import pytest
from full_report import changed

from qtool.report.render.formats import render

BLOCK = "/body/first .. /body/<second>"
STEPS = [
    {"step": "qdrop", "block": BLOCK, "before": 0.5, "after": 0.25, "kept": True, "seconds": 1.5},
    {"step": "qdrop", "before": 0.125, "after": 0.375, "kept": False, "seconds": 2.5},
]


@pytest.mark.parametrize("fmt", ["markdown", "html"])
def test_pages_have_a_row_for_each_block_and_step(fmt):
    page = render(changed(ptq=STEPS), fmt).replace("<wbr>", "")
    assert "/body/first .. /body/" in page and "0.25" in page and "0.375" in page
    assert "<second>" not in page or fmt == "markdown"  # names are text, never tags


@pytest.mark.parametrize("fmt", ["markdown", "html"])
def test_many_layers_are_folded_by_step_in_the_order_of_the_run(fmt):
    names = [f"layer{k}" for k in range(50)]
    steps = [
        {**STEPS[0], "step": "seqmse", "block": name, "kept": name > "layer1"} for name in names
    ]
    steps += [{**STEPS[1], "step": "seqmse"}]
    steps += [{**STEPS[0], "step": "gptq", "block": name} for name in names]
    page = render(changed(ptq=[*steps, {**STEPS[1], "step": "gptq"}]), fmt).replace("<wbr>", "")
    folds = [fold for fold in page.split("<details") if "layer49" in fold]
    assert len(folds) == 2 and all(
        fold.count(">layer" if fmt == "html" else "`layer") == 50 for fold in folds
    )
    assert "seqmse" in folds[0] and "48 of 50" in folds[0]
    assert "gptq" in folds[1] and "50 of 50" in folds[1]
    assert "layer0" not in page.split("<details")[0]


def test_the_terminal_has_the_steps_alone():
    text = render(changed(ptq=STEPS), "terminal", width=120)
    assert text.count("qdrop") == 1 and "rolled back" in text and "/body/" not in text


@pytest.mark.parametrize(
    ("after", "mark", "words"),
    [
        (0.375, "✗", "no better, rolled back"),
        (0.125, "–", "changed nothing"),
        (0.1, "✗", "gains too little"),
    ],
)
def test_a_step_that_is_not_used_says_why(after, mark, words):
    step = {**STEPS[1], "after": after}
    text = render(changed(ptq=[step]), "terminal", width=120)
    assert words in text and f"{mark} qdrop" in text
