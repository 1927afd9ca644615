"""Measure stage 4 by its steps, on made-up features of a source and a target.

    python -m tests.bench.shift [--rows 2000,20000] [--width 1024]

A fifth of the rows is the target's. Wall seconds count only on a machine that does nothing
else; CPU seconds nearly everywhere.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.data.domain import DomainData
from pipeline.shift.adapt import AdaptationPlan, SealedLabels, predict_target, score
from pipeline.shift.decompose import decompose, error_table
from pipeline.shift.detect import detect
from pipeline.shift.head import fit_source
from pipeline.shift.label_free import estimate_accuracy
from pipeline.shift.stage import LARGE, ShiftOptions
from tests.bench import heading, row


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of seconds for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="2000,20000")
    parser.add_argument("--width", type=int, default=1024)
    options = parser.parse_args(arguments)
    sizes = [int(n) for n in options.rows.split(",")]
    seconds = {n: _seconds(n, options.width) for n in sizes}
    print(f"shift, one target, {options.width} features\n")
    heading("step", *(f"{n} rows, {clock} s" for n in sizes for clock in ("CPU", "wall")))
    for step in seconds[sizes[0]]:
        row(step, *(f"{second:.1f}" for n in sizes for second in seconds[n][step]))


def _domain(rng: np.random.Generator, n: int, width: int, role: str) -> DomainData:
    label = np.arange(n) // 2 % 2
    features = rng.standard_normal((n, width), np.float32) + 0.1 * (role == "target")
    features[:, :20] += 0.5 * label[:, None]
    return DomainData(name=role, role=role, group=np.arange(n) // 2, label=label, features=features)


def _seconds(n: int, width: int) -> dict[str, tuple[float, float]]:
    """CPU and wall seconds of each step, and of all."""
    rng, seconds, asked = np.random.default_rng(0), {}, ShiftOptions()
    start = time.process_time(), time.perf_counter()

    def timed(step, action):
        before = time.process_time(), time.perf_counter()
        result = action()
        seconds[step] = (time.process_time() - before[0], time.perf_counter() - before[1])
        return result

    source, target = (
        _domain(rng, rows, width, role)
        for rows, role in ((n - n // 5, "source"), (n // 5, "target"))
    )
    plan = AdaptationPlan(seeds=tuple(range(asked.seeds)))
    sealed = SealedLabels(target.label, plan.digest())
    with threadpool_limits(1 if n * width < LARGE else None):
        model = timed("fit the head", partial(fit_source, source))
        opened = model.apply(target)
        blind = opened.sealed()
        timed("detect", partial(detect, model.data, blind, draws=asked.draws))
        names = ("a", "b")
        timed("estimate", partial(estimate_accuracy, model.data, blind, rng, classes=names))
        made = timed("adapt", partial(predict_target, model, blind, plan))
        timed("score methods", partial(score, made, sealed, model, blind, plan))
        timed("decompose", partial(decompose, model.data, opened))
        given = {"source": model.data, "training": model.apply(model.data)}
        timed("error table", partial(error_table, model.data, opened, **given))
    seconds["all"] = (time.process_time() - start[0], time.perf_counter() - start[1])
    return seconds


if __name__ == "__main__":
    main()
