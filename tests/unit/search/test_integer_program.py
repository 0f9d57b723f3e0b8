"""The integer program is exact: as enumeration says, and never above a limit."""

import ctypes
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool.search import integer_program
from qtool.search.integer_program import Choice, Conversion, Program
from qtool.search.mixed_precision import IntegerProgram, Problem


def test_the_known_answer():
    sites = [
        [Choice({"cost": cost, "size": bits}) for cost, bits in zip(costs, (4, 8), strict=True)]
        for costs in ((10, 1), (2, 1))
    ]
    program = Program(sites)
    chosen = program.solve({"size": 12})
    assert chosen == (1, 0) and program.amount(chosen, "cost") == 3


@st.composite
def programs(draw):
    count = draw(st.integers(1, 6))
    number = st.floats(0, 100).map(lambda x: round(x, 2))
    sites = [
        [
            Choice(
                {"cost": draw(number), "size": draw(number), "ms": draw(number)},
                is_float=draw(st.booleans()),
            )
            for _ in range(draw(st.integers(1, 3)))
        ]
        for _ in range(count)
    ]
    edges = [
        Conversion(k, k + 1, {"ms": draw(number), "cost": draw(number)}, {"ms": draw(number)})
        for k in range(count - 1)
        if draw(st.booleans())
    ]
    limits = {name: draw(st.floats(0, 300)) for name in ("size", "ms")}
    return Program(sites, edges), limits


@settings(max_examples=150)
@given(programs())
def test_it_is_as_good_as_enumeration(drawn):
    program, limits = drawn
    fits = [
        chosen
        for chosen in product(*(range(len(choices)) for choices in program.sites))
        if program.allows(chosen, limits)
    ]
    chosen = program.solve(limits)
    if not fits:
        slack = {name: limit - 1e-4 for name, limit in limits.items()}
        assert chosen is None or any(program.amount(chosen, n) > x for n, x in slack.items())
        return
    best = min(program.amount(each, "cost") for each in fits)
    assert chosen is not None
    for name, limit in limits.items():
        assert program.amount(chosen, name) <= limit + 1e-4
    assert program.amount(chosen, "cost") == pytest.approx(best, abs=1e-4)


def test_a_wider_budget_never_costs_more():
    rng = np.random.default_rng(0)
    sites = [
        [Choice({"cost": c, "size": s}) for c, s in zip(rng.random(4), (2, 4, 6, 8), strict=True)]
        for _ in range(20)
    ]
    program = Program(sites)
    costs = []
    for limit in range(40, 161, 10):
        chosen = program.solve({"size": limit})
        assert program.amount(chosen, "size") <= limit
        costs.append(program.amount(chosen, "cost"))
    assert all(a >= b - 1e-9 for a, b in pairwise(costs))
    assert program.solve({"size": 39}) is None


def test_the_smallest_choice_within_a_cost():
    sites = [[Choice({"cost": 8 / b, "size": b}) for b in (2, 4, 8)] for _ in range(3)]
    program = Program(sites)
    chosen = program.solve({"cost": 6.0}, objective="size")
    assert program.amount(chosen, "cost") <= 6 and program.amount(chosen, "size") == 12


def test_one_site_at_least_computes_in_integers():
    costs = [(1.0, 0.0), (0.5, 0.0), (2.0, 0.0)]
    sites = [[Choice({"cost": c}), Choice({"cost": f}, is_float=True)] for c, f in costs]
    program = Program(sites)
    assert program.solve({}) == (1, 0, 1)
    assert not program.allows((1, 1, 1), {}) and program.allows((1, 0, 1), {"cost": 0.5})
    assert Program([sites[0][1:]]).solve({}) is None


def test_one_of_the_solutions_lies_next_to_the_uniform_width():
    """Its choices are the best of those next to it; the other solutions take any."""
    rng = np.random.default_rng(2)
    sites = [
        [
            Choice({"cost": c / s**2, "size": s})
            for c, s in zip(rng.random(4), (2, 4, 6, 8), strict=True)
        ]
        for _ in range(5)
    ]
    neighbors = [(0, 1)] * 5
    problem = Problem(Program(sites), [], lambda chosen: 0.0, neighbors=neighbors)
    limits = {"size": 18.0}
    *others, near = (solve(limits) for solve in IntegerProgram().solvers(problem))
    fits = [c for c in product(*neighbors) if problem.program.allows(c, limits)]
    best = min(problem.program.amount(each, "cost") for each in fits)
    assert problem.program.amount(near, "cost") == pytest.approx(best)
    assert max(near) == 1 < max(max(chosen) for chosen in others)
    without = Problem(problem.program, [], problem.loss)
    assert len(IntegerProgram().solvers(without)) == len(others)


def test_what_the_solver_prints_stays_off_stdout(monkeypatch, capfd):
    solve, libc = integer_program.milp, ctypes.CDLL(None)

    def printing(*words, **options):
        libc.puts(b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();")
        return solve(*words, **options)

    monkeypatch.setattr(integer_program, "milp", printing)
    way = Choice({"cost": 1.0, "bytes": 1.0})
    assert Program([[way]]).solve({"bytes": 1.0}) == (0,)
    print("result", flush=True)
    libc.fflush(None)
    assert capfd.readouterr().out == "result\n"
