"""Formulas as trees. A formula has at most 400 tokens and 40 levels, and its numbers have at most 400 digits."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_MOST_TOKENS = 400
_DEEPEST = 40
_MOST_DIGITS = 400
_TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)|(\\[A-Za-z]+|[A-Za-z]+)|([-+*/÷^_!%(){}\[\]|']))"
)
_FUNCTION_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp abs"
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
_GREEK = frozenset(_GREEK_NAMES.split())
_SHORT_WORDS_IN_ENGLISH = "is it in if so to of on or no an as at am be by do go he hi me my oh ok up us we"
_SHORT_WORDS = frozenset(_SHORT_WORDS_IN_ENGLISH.split())
PLAIN_NAMES = _FUNCTIONS | {"sqrt", "pi"}
"""Words that are read as their LaTeX command."""
_CONSTANTS = frozenset({"e", "i"})


class NotAFormula(Exception):
    """The text is no formula that can be read within the bounds."""


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a formula. `3\\pi` is `Node("mul", (Node("num", value=3), Node("const", name="pi")))`."""

    op: str
    """One of num, sym, const, add, mul, neg, div, over, pow, root, percent, mixed, fact, binom, call."""
    args: tuple["Node", ...] = ()
    """Its parts, in the order they are written."""
    value: Fraction | None = None
    """Of a num: what it is."""
    name: str = ""
    """Of a sym, const or call: its name."""


def parse(text: str) -> Node:
    """Reads a formula in LaTeX or plain text, cleaned by `plain_text`.

    Raises:
        NotAFormula: the text is none, or is too long, too deep or has too long a number.
    """
    reader = _Reader(list(_tokens(text)))
    node = reader.sum_()
    if reader.next:
        raise NotAFormula
    return node


def _tokens(text: str) -> Iterator[str]:
    """Numbers, names and signs. A pair of letters, such as `xy`, counts as two names."""
    position, count, end = 0, 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        count += 1
        if match is None or count > _MOST_TOKENS or len(match.group()) > _MOST_DIGITS:
            raise NotAFormula
        position = match.end()
        number, word, sign = match.groups()
        if word in PLAIN_NAMES:
            yield "\\" + word
        elif word is None or word[0] == "\\" or len(word) == 1:
            yield number or word or sign
        elif (len(word) == 2 and word.lower() not in _SHORT_WORDS) or word in ("abc", "xyz"):
            yield from word
        else:
            raise NotAFormula


class _Reader:
    """A recursive descent over the tokens; a token that is used up is gone."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens[::-1]
        self._depth = 0

    @property
    def next(self) -> str:
        """The next token, empty at the end."""
        return self._tokens[-1] if self._tokens else ""

    def _take(self, *expected: str) -> str:
        if not self._tokens or (expected and self.next not in expected):
            raise NotAFormula
        return self._tokens.pop()

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NotAFormula

    def sum_(self) -> Node:
        """Terms with + and −."""
        self._deeper()
        terms = [self._signed(signs=1)]
        while self.next and self.next in "+-":
            terms.append(self._signed(signs=2))  # `5 + -3`
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def _signed(self, *, signs: int) -> Node:
        negative = False
        for _ in range(signs):
            if self.next and self.next in "+-":
                negative ^= self._take() == "-"
        term = self._product()
        return _negative(term) if negative else term

    def _product(self) -> Node:
        factors = [self._power()]
        while self.next:
            if self.next == "*":
                self._take()
                factors.append(self._signed_factor())
            elif self.next in "/÷":
                op = "div" if self._take() == "/" else "over"
                factors = [Node(op, (_times(factors), self._signed_factor()))]
            elif self.next in "+-)}]|":
                break
            else:
                factors = self._beside(factors)
        return _times(factors)

    def _signed_factor(self) -> Node:
        if self.next and self.next in "+-":
            return _negative(self._power()) if self._take() == "-" else self._power()
        return self._power()

    def _beside(self, factors: list[Node]) -> list[Node]:
        """A factor without a sign before it: `2x`, or the fraction of a mixed number."""
        is_fraction, is_digit = self.next == "\\frac", self.next[0] in "0123456789."
        factor, before = self._power(), factors[-1]
        if is_digit:
            raise NotAFormula  # `1 2`, `x 2`
        if is_fraction and _is_whole(before) and factor.op == "div" and all(map(_is_whole, factor.args)):
            return [*factors[:-1], Node("mixed", (before, factor))]
        return [*factors, factor]

    def _power(self) -> Node:
        base = self._base()
        if self.next == "^":
            self._take()
            base = Node("pow", (base, self._argument(whole_number=True)))
        if self.next and self.next in "!%":
            base = Node("fact" if self._take() == "!" else "percent", (base,))
        if self.next and self.next in "^!%'":
            raise NotAFormula
        return base

    def _base(self) -> Node:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return _number(token)
        if token in "({[|":
            inner = self.sum_()
            self._take({"(": ")", "{": "}", "[": "]", "|": "|"}[token])
            return Node("call", (inner,), name="abs") if token == "|" else inner
        if token[0] == "\\":
            return self._command(token[1:])
        if token.isalpha():
            return self._symbol(token)
        raise NotAFormula

    def _symbol(self, name: str) -> Node:
        if self.next == "_":
            self._take()
            return Node("sym", name=f"{name}_{self._index()}")
        return Node("const", name=name) if name in _CONSTANTS else Node("sym", name=name)

    def _index(self) -> str:
        """The subscript: one token, or those between braces."""
        if self.next != "{":
            return self._take()
        self._take()
        parts = []
        while self.next != "}":
            parts.append(self._take())
        self._take()
        return "".join(parts)

    def _command(self, name: str) -> Node:
        if name == "frac":
            return Node("div", (self._argument(), self._argument()))
        if name in ("binom", "dbinom", "tbinom"):
            return Node("binom", (self._argument(), self._argument()))
        if name == "sqrt":
            index = Node("num", value=Fraction(2))
            if self.next == "[":
                self._take()
                index = self.sum_()
                self._take("]")
            return Node("root", (self._argument(whole_number=True), index))
        if name in _FUNCTIONS:
            return self._call(name)
        if name == "pi":
            return Node("const", name="pi")
        if name in _GREEK:
            return self._symbol(name)
        raise NotAFormula

    def _call(self, name: str) -> Node:
        base = exponent = None
        if name == "log" and self.next == "_":
            self._take()
            base = self._argument(whole_number=True)
        if self.next == "^":
            self._take()
            exponent = self._argument(whole_number=True)
        if self.next and self.next in "({|":
            argument = self._base()
        else:
            self._deeper()
            factors = [self._power()]
            while self.next and self.next not in "+-*/÷)}]|" and self.next[1:] not in _FUNCTIONS:
                factors = self._beside(factors)
            self._depth -= 1
            argument = _times(factors)
        if name == "exp":
            return Node("pow", (Node("const", name="e"), argument))
        inverse = exponent is not None and exponent.value == -1 and name in ("sin", "cos", "tan")
        call = Node("call", (argument,) if base is None else (argument, base), name="arc" + name if inverse else name)
        return call if exponent is None or inverse else Node("pow", (call, exponent))

    def _argument(self, *, whole_number: bool = False) -> Node:
        """What braces hold, or one character as in `\\frac12`, or with `whole_number` the number of `2^10`."""
        if self.next in ("{", "("):
            return self._base()
        if self.next == "-" and whole_number:
            self._take()
            return _negative(self._argument(whole_number=True))
        token = self._take()
        if token.isdigit() and not whole_number and len(token) > 1:
            self._tokens.append(token[1:])
            token = token[0]
        if not (token[0].isalnum() or token[0] in "\\."):
            raise NotAFormula
        self._tokens.append(token)
        self._deeper()
        node = self._base()
        self._depth -= 1
        return node


def _number(token: str) -> Node:
    digits, _, exponent = token.lower().partition("e")
    if exponent and abs(int(exponent)) > 5000:
        raise NotAFormula
    return Node("num", value=Fraction(digits.rstrip(".")) * Fraction(10) ** int(exponent or 0))


def _negative(node: Node) -> Node:
    return Node("num", value=-node.value) if node.value is not None else Node("neg", (node,))


def _times(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))


def _is_whole(node: Node) -> bool:
    return node.value is not None and node.value >= 0 and node.value.denominator == 1


def parts(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    yield node
    for arg in node.args:
        yield from parts(arg)


def symbols(node: Node) -> frozenset[str]:
    """Names of its variables."""
    return frozenset(part.name for part in parts(node) if part.op == "sym")


def functions(node: Node) -> frozenset[str]:
    """Names of the functions that are called, factorials and binomials among them."""
    return frozenset(part.name or part.op for part in parts(node) if part.op in ("call", "fact", "binom"))


def leaves(node: Node) -> list[str]:
    """The numbers and names that it is made of, sorted."""
    return sorted(f"{part.name}{part.value}" for part in parts(node) if not part.args)
