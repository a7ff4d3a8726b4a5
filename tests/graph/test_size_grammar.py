"""Sizes in a file: what torch writes is read, anything else is refused without evaluation."""

import pytest
import sympy
from torch.utils._sympy.functions import CeilToInt, FloorDiv, IntTrueDiv, Mod, PowByNatural

from ladderize.compat.size_grammar import is_size

s, t = sympy.Symbol("s0", positive=True, integer=True), sympy.Symbol("batch", integer=True)
SIZES = [
    sympy.Integer(7),
    s,
    -s + 2 * t,
    FloorDiv(s + 1, 2),
    Mod(s, 8),
    CeilToInt(IntTrueDiv(s, 2)),
    PowByNatural(s, 2),
    s**2 / 3,
    sympy.sqrt(s),
    sympy.Max(s, t, 4),
    sympy.Eq(s, 4),
    sympy.And(s > 3, t <= 5),
    sympy.Float(0.5) * s,
    sympy.true,
    sympy.oo,
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_torch_prints_is_a_size(size):
    assert is_size(sympy.srepr(size))
    assert is_size(str(size))


HOSTILE = [
    "Matrix(1, 1, S('print'))",
    "print(1)",
    "__import__('os')",
    "().__class__",
    "s0.func",
    "[1, 2]",
    "lambda: 0",
    "S('print')",
    "Symbol(1)",
    "Symbol('a b')",
    "Symbol('s0', integer=print)",
    "Add('s0', 1)",
    "Float('nan; print()')",
    "9**9**9",
    "Pow(Integer(9), Integer(999999999))",
    "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
    "9" * 30,
    "1 + " * 6000 + "1",
    "(" * 5000,
    "-" * 300 + "1",
    "eval",
    "s0 if s0 else 1",
    "f'{s0}'",
    "1j",
    "",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_nothing_else_is(text):
    assert not is_size(text)
