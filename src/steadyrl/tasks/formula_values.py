"""What a formula is worth, and whether it was worked out. Nothing here can take long.

Exact values have at most 10,000 bits; a larger one is no value.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from steadyrl.tasks.formulas import Node, symbols

_MOST_BITS = 10_000


def exact(node: Node) -> Fraction | None:
    """Its value if that is rational and small enough, else None."""
    if node.op == "num":
        return node.value
    if node.op in ("sym", "const"):
        return None
    values = []
    for arg in node.args:
        value = exact(arg)
        if value is None:
            return None
        values.append(value)
    result = _apply(node, values)
    too_large = result is not None and result.numerator.bit_length() + result.denominator.bit_length() > _MOST_BITS
    return None if too_large else result


def _apply(node: Node, values: list[Fraction]) -> Fraction | None:
    """The operation on exact values; None where the result is irrational, undefined or too large."""
    first, last = values[0], values[-1]
    match node.op:
        case "neg":
            return -first
        case "percent":
            return first / 100
        case "add":
            return sum(values, Fraction())
        case "mixed":
            return first + last
        case "mul":
            product = Fraction(1)
            for value in values:
                product *= value
                if product.numerator.bit_length() + product.denominator.bit_length() > _MOST_BITS:
                    return None
            return product
        case "div" | "over":
            return first / last if last else None
        case "pow":
            return _power_of(first, last)
        case "root":
            return _power_of(first, 1 / last) if last else None
        case "fact" | "binom":
            return _count(node.op, values)
        case "call" if node.name == "abs":
            return abs(first)
    return None


def _count(op: str, values: list[Fraction]) -> Fraction | None:
    if any(value.denominator != 1 or not 0 <= value <= 1000 for value in values):
        return None
    numbers = [int(value) for value in values]
    return Fraction(math.factorial(numbers[0]) if op == "fact" else math.comb(*numbers))


def _power_of(base: Fraction, exponent: Fraction) -> Fraction | None:
    """base^exponent if it is rational and has at most 10,000 bits."""
    power, root = exponent.numerator, exponent.denominator
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(power) * size > _MOST_BITS or root > 1000 or (base == 0 and power < 0) or (base == 0 and power == 0):
        return None
    value = base**power
    if root == 1:
        return value
    top, bottom = _whole_root(value.numerator, root), _whole_root(value.denominator, root)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _whole_root(value: int, root: int) -> int | None:
    """The integer whose power `root` is `value`, if there is one."""
    if value < 0:
        odd = _whole_root(-value, root) if root % 2 else None
        return None if odd is None else -odd
    low, high = 0, 1 << (value.bit_length() // root + 1)
    while low < high:  # the smallest integer whose power is not below value
        middle = (low + high) // 2
        if middle**root < value:
            low = middle + 1
        else:
            high = middle
    return low if low**root == value else None


def is_literal(node: Node) -> bool:
    """A number written as one: `7`, `-7`, `50%`, `3\\frac{1}{2}`, `1.6 * 10^{3}`, or a fraction that is not whole."""
    if node.op == "neg":
        return node.args[0].op != "neg" and is_literal(node.args[0])
    if node.op == "percent":
        return node.args[0].op == "num"
    if node.op == "div":
        value = exact(node)
        return all(arg.op == "num" for arg in node.args) and value is not None and value.denominator != 1
    return node.op in ("num", "mixed") or _is_scientific(node)


def is_value(node: Node) -> bool:
    """A number that is worked out: a literal, or a fraction, power or root of plain numbers.

    `\\frac{14}{2}`, `2^4`, `\\sqrt{16}` and `10^{-5}` are. `5+11`, `4*4`, `84 ÷ 7`, `\\frac{10+4}{2}`, `2^{2+2}`,
    `\\sqrt{9+7}`, `4!` and `\\binom{4}{2}` are not.
    """
    if node.op == "neg":
        return node.args[0].op != "neg" and is_value(node.args[0])
    if node.op in ("pow", "root", "percent"):
        return all(map(_is_simple, node.args))
    return _is_simple(node) or node.op == "mixed" or _is_scientific(node)


def _is_simple(node: Node) -> bool:
    """A plain number, or a fraction of two."""
    if node.op == "neg":
        return node.args[0].op == "div" and _is_simple(node.args[0])
    return node.op == "num" or (node.op == "div" and all(arg.op == "num" for arg in node.args))


def _is_scientific(node: Node) -> bool:
    if node.op != "mul" or len(node.args) != 2:
        return False
    digits, power = node.args
    return digits.op == "num" and power.op == "pow" and power.args[0].value == 10 and power.args[1].op == "num"


def is_worked_out(node: Node) -> bool:
    """A constant in which no two plain numbers are left to be added, multiplied or put into a function.

    `2\\pi + 3` and `\\frac{1+\\sqrt{5}}{2}` are worked out, `2 * 4\\sqrt{2}` and `\\pi + 3 + 4` are not.
    """
    if exact(node) is not None:
        return is_value(node)
    plain = sum(exact(arg) is not None for arg in node.args)
    return (node.op not in ("add", "mul") or plain <= 1) and all(map(is_worked_out, node.args))


def is_identical(left: Node, right: Node) -> bool:
    """Whether both have the same variables and agree, to 30 digits, at three places of those variables."""
    names = sorted(symbols(left))
    if names != sorted(symbols(right)):
        return False
    import mpmath

    try:
        with mpmath.workdps(50):
            for place in range(3):
                env = {name: mpmath.sqrt(3 + 7 * place + 2 * n) / (2 + place) for n, name in enumerate(names)}
                first, second = _numeric(left, env), _numeric(right, env)
                if abs(first - second) > mpmath.mpf(10) ** -30 * max(1, abs(first), abs(second)):
                    return False
                if not names:
                    break
    except (ArithmeticError, ValueError):
        return False
    return True


def _numeric(node: Node, env: Mapping[str, Any]) -> Any:
    """Its value at a place, a complex number of 50 digits.

    Raises:
        ArithmeticError: there is none, or it is larger than 10^1000.
    """
    import mpmath

    if node.op == "num":
        assert node.value is not None
        return mpmath.mpf(node.value.numerator) / node.value.denominator
    if node.op == "sym":
        return env[node.name]
    if node.op == "const":
        return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}[node.name]
    if node.op in ("fact", "binom"):
        value = exact(node)
        if value is None:
            raise ArithmeticError
        return mpmath.mpf(value.numerator) / value.denominator
    args = [_numeric(arg, env) for arg in node.args]
    result = _combine(node, args)
    if not abs(result) < mpmath.mpf(10) ** 1000:
        raise ArithmeticError
    return result


def _combine(node: Node, args: list[Any]) -> Any:
    import mpmath

    match node.op:
        case "neg":
            return -args[0]
        case "percent":
            return args[0] / 100
        case "add" | "mixed":
            return mpmath.fsum(args)
        case "mul":
            return mpmath.fprod(args)
        case "div" | "over":
            return args[0] / args[1]
        case "pow" | "root":
            exponent = args[1] if node.op == "pow" else 1 / args[1]
            if abs(exponent) > 10_000:
                raise ArithmeticError
            return args[0] ** exponent
    functions = {
        "ln": mpmath.log, "log": mpmath.log, "abs": abs, "arcsin": mpmath.asin, "arccos": mpmath.acos,
        "arctan": mpmath.atan,
    }  # fmt: skip
    function = functions.get(node.name) or getattr(mpmath, node.name)
    return function(*args)
