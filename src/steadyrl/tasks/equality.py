"""Whether an answer equals a reference. `docs/answers.md` gives the rules in words."""

from steadyrl.tasks.answer_values import Choice, Equation, Formula, Number, Opaque, ReadAnswer, Several
from steadyrl.tasks.formula_values import exact, is_identical, is_worked_out
from steadyrl.tasks.formulas import Node, functions, leaves, symbols


def is_right(reference: ReadAnswer, answer: ReadAnswer, *, literal: bool = False) -> bool:
    """Whether an answer equals the reference.

    Args:
        reference: The reference.
        answer: What the response answers.
        literal: Take only numbers that are written as numbers, for an answer that nothing marks as one.
    """
    if isinstance(answer.value, Choice) and not isinstance(reference.value, Choice) and answer.value.more is not None:
        return is_right(reference, answer.value.more, literal=literal)
    expected, given = reference.value, answer.value
    if reference.text and reference.text == answer.text and not isinstance(expected, Number):
        return True
    if isinstance(expected, Equation) and isinstance(given, Equation):
        both_variables = len(expected.name) == len(given.name) == 1
        return not (both_variables and expected.name != given.name) and is_right(
            expected.answer, given.answer, literal=literal
        )
    if isinstance(given, Equation):
        return is_right(reference, given.answer, literal=literal)
    if isinstance(expected, Equation):
        return is_right(expected.answer, answer, literal=literal)
    if isinstance(expected, Choice):
        return _is_choice(expected, answer)
    if isinstance(expected, Number):
        if not isinstance(given, Number) or (literal and not given.literal and given.node != expected.node):
            return False
        return _is_number(expected, given)
    if isinstance(expected, Formula):
        return _is_formula(expected.node, given)
    if isinstance(expected, Several) and isinstance(given, Several):
        return _are_all_right(expected, given)
    if isinstance(expected, Opaque) and isinstance(given, Opaque | Several):
        from steadyrl.tasks.symbolic import is_equal

        return is_equal(expected.latex, given.latex if isinstance(given, Opaque) else answer.text)
    return False


def _is_choice(expected: Choice, answer: ReadAnswer) -> bool:
    """The letter, the letter with its text, or the text alone."""
    given = answer.value
    if not isinstance(given, Choice):
        return expected.more is not None and is_right(expected.more, answer)
    more_is_right = expected.more is None or given.more is None or is_right(expected.more, given.more)
    return expected.letter == given.letter and more_is_right


def _is_number(expected: Number, given: Number) -> bool:
    """Exactly equal, and of the same unit where both name one.

    A percentage equals its value and the number before its sign: `50%` is `0.5` and `50`. A plain reference below 1
    is no percentage: `0.5` is `50%`, not `0.5%`.
    """
    if expected.unit and given.unit and expected.unit != given.unit:
        return False
    if expected.value == given.value:
        return True
    if expected.percent:
        return not given.percent and expected.value * 100 == given.value
    return given.percent and abs(expected.value) >= 1 and expected.value == given.value * 100


def _is_formula(expected: Node, given: object) -> bool:
    """Equal in value, and worked out where it is a constant, unless the reference is written so too."""
    if isinstance(given, Number):
        value = exact(expected)
        return (
            value == given.value if value is not None else given.node is not None and is_identical(expected, given.node)
        )
    if not isinstance(given, Formula):
        return False
    if symbols(expected) or symbols(given.node):
        return is_identical(expected, given.node)
    if not functions(given.node) <= functions(expected):
        return False
    written_so = not is_worked_out(expected) and leaves(expected) == leaves(given.node)
    if not (written_so or is_worked_out(given.node)):
        return False
    left, right = exact(expected), exact(given.node)
    return left == right if left is not None and right is not None else is_identical(expected, given.node)


def _are_all_right(expected: Several, given: Several) -> bool:
    """Item by item. Sets, unions and lists without brackets have no order; a tuple may lose its brackets."""
    if len(expected.items) != len(given.items):
        return False
    brackets = {expected.brackets, given.brackets}
    same = len(brackets) == 1 or brackets in ({"", "()"}, {"", "{}"})
    if not same and not (brackets == {"", "[]"} and len(expected.items) > 2):
        return False
    ordered = bool(brackets & {"()", "[]", "(]", "[)", "matrix"})
    if ordered:
        return all(map(is_right, expected.items, given.items))
    left = list(given.items)
    for item in expected.items:
        match = next((other for other in left if is_right(item, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True
