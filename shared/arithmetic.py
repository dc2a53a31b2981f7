"""The value of an arithmetic expression that nobody trusts: no eval, and bounds on everything."""

# Far above what a policy needs; it bounds the parser's depth and the size of products.
_MAX_CHARACTERS = 256
_MAX_DIGITS = 9


class ExpressionError(ValueError):
    """The text is no expression."""


def evaluate(text: str) -> tuple[int, list[int]]:
    """The value of an arithmetic expression and the numbers in it, by recursive descent.

    Grammar: sum = product (("+" | "-") product)*; product = atom ("*" atom)*; atom = digits | "(" sum ")".

    Raises:
        ExpressionError: anything else, or more than 256 characters.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ExpressionError(f"{len(text)} characters; at most {_MAX_CHARACTERS}")
    parser = _Parser(text.replace(" ", ""))
    value = parser.sum()
    if parser.rest:
        raise ExpressionError(f"unexpected {parser.rest[:8]!r}")
    return value, parser.numbers


class _Parser:
    def __init__(self, text: str) -> None:
        self.rest = text
        self.numbers: list[int] = []

    def sum(self) -> int:
        value = self._product()
        while self.rest[:1] in ("+", "-"):
            if self._take() == "+":
                value += self._product()
            else:
                value -= self._product()
        return value

    def _product(self) -> int:
        value = self._atom()
        while self.rest[:1] == "*":
            self._take()
            value *= self._atom()
        return value

    def _atom(self) -> int:
        if self.rest[:1] == "(":
            self._take()
            value = self.sum()
            if self.rest[:1] != ")":
                raise ExpressionError("missing )")
            self._take()
            return value
        digits = ""
        while self.rest[:1].isascii() and self.rest[:1].isdigit():
            digits += self._take()
        if not 0 < len(digits) <= _MAX_DIGITS:
            raise ExpressionError(f"expected a number at {self.rest[:8]!r}")
        self.numbers.append(int(digits))
        return self.numbers[-1]

    def _take(self) -> str:
        character, self.rest = self.rest[0], self.rest[1:]
        return character
