"""The grammar of sizes in a `.pt2` file: only arithmetic of symbols and numbers.

    size        number | symbol | - size | not size | size op size | function(size, …)
    number      an integer below 2**63, a float, True, False
    symbol      an identifier | Symbol('name', integer=True, …)
    op          + - * / // % ** & | < <= > >= == !=
    function    a name in `FUNCTIONS`, or one in `POWERS` with the arguments base and exponent
    exponent    also that of **: an integer from -64 to 64, or a root

torch.export writes sizes with `srepr` and reads them with `sympy.sympify`, which evaluates Python
(seen in 2.11 to 2.15). Text that this grammar refuses is never passed to it.
"""

import ast
import builtins
import re

POWERS = frozenset({"Pow", "PowByNatural", "FloatPow"})
FUNCTIONS = frozenset(
    """Add Mul Mod Max Min Abs Integer Rational Float floor ceiling sqrt And Or Not Eq Ne Lt Le Gt
    Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan BooleanTrue
    BooleanFalse Piecewise ExprCondPair FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt
    FloorToInt CeilDiv IntTrueDiv FloatTrueDiv LShift RShift IsNonOverlappingAndDenseIndicator
    TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity IntInfinity NegativeIntInfinity
    Infinity NegativeInfinity BitwiseFn_bitwise_and BitwiseFn_bitwise_or BitwiseFn_bitwise_xor
    OpaqueUnaryFn_sqrt OpaqueUnaryFn_exp OpaqueUnaryFn_log OpaqueUnaryFn_log2""".split()
)
LONGEST = 20_000
"""Maximum number of characters in a size."""
DEEPEST = 100
"""Maximum nesting of calls and operators."""
_MOST, _LARGEST_EXPONENT = 2**63, 64


def is_size(text: str) -> bool:
    """Whether `text` matches the grammar. Nothing is evaluated."""
    if len(text) > LONGEST:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return _is_size(tree.body, DEEPEST)


def _is_size(node: ast.expr, depth: int) -> bool:
    if depth == 0:
        return False
    match node:
        case ast.Constant(value=bool() | float()):
            return True
        case ast.Constant(value=int(value)):
            return value < _MOST
        case ast.Name(id=name):
            return not name.startswith("__") and not hasattr(builtins, name)
        case ast.UnaryOp(operand=operand):
            return _is_size(operand, depth - 1)
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            return _is_exponent(exponent) and _is_size(base, depth - 1)
        case ast.BinOp(
            left=left,
            op=ast.Add()
            | ast.Sub()
            | ast.Mult()
            | ast.Div()
            | ast.FloorDiv()
            | ast.Mod()
            | ast.BitAnd()
            | ast.BitOr(),
            right=right,
        ):
            return _is_size(left, depth - 1) and _is_size(right, depth - 1)
        case ast.Compare(left=left, comparators=others):
            return all(_is_size(each, depth - 1) for each in (left, *others))
        case ast.BoolOp(values=values) | ast.Tuple(elts=values):
            return all(_is_size(each, depth - 1) for each in values)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            return name.isidentifier() and all(map(_is_assumption, node.keywords))
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(digits))]):
            return bool(re.fullmatch(r"-?[\d.]{1,40}(e[+-]?\d{1,3})?", digits)) and all(
                map(_is_assumption, node.keywords)
            )
        case ast.Call(func=ast.Name(id=name), args=[base, exponent]) if name in POWERS:
            return not node.keywords and _is_exponent(exponent) and _is_size(base, depth - 1)
        case ast.Call(func=ast.Name(id=name), args=args) if name in FUNCTIONS:
            return not node.keywords and all(_is_size(each, depth - 1) for each in args)
    return False


def _is_exponent(node: ast.expr) -> bool:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_exponent(operand)
        case ast.Call(func=ast.Name(id="Integer"), args=[only]):
            return _is_exponent(only)
        case ast.Call(func=ast.Name(id="Rational"), args=[above, below]):  # a root
            return _is_exponent(above) and _is_exponent(below)
        case ast.Constant(value=int(value)):
            return value <= _LARGEST_EXPONENT
    return False


def _is_assumption(keyword: ast.keyword) -> bool:
    """Whether it is like `integer=True` of a symbol or `precision=53` of a float."""
    match keyword.value:
        case ast.Constant(value=bool()):
            return True
        case ast.Constant(value=int(value)):
            return keyword.arg in ("precision", "dps") and value <= 64
    return False
