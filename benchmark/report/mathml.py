"""TeX formulas as MathML, which browsers set by themselves: as much of TeX as the ledger uses."""

from __future__ import annotations

import re
from html import escape

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
_LETTERS = {
    **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "varepsilon": "ε", "theta": "θ"},  # noqa: RUF001
    **{"lambda": "λ", "mu": "μ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "ϕ"},  # noqa: RUF001
    "infty": "∞",
}
_OPERATORS = {
    **dict.fromkeys(("dots", "ldots"), "…"),
    "cdots": "⋯",
    "cdot": "⋅",
    "times": "\N{MULTIPLICATION SIGN}",
    "pm": "±",
    "le": "≤",
    "ge": "≥",
    "ne": "≠",
    "in": "∈",
    "to": "→",
    "gg": "≫",
    "ll": "≪",
    "approx": "≈",
    "Vert": "‖",
    "vert": "|",
    "mid": "|",
    "{": "{",
    "}": "}",
    "%": "%",
    "$": "$",
}
_LARGE = {"sum": "∑", "prod": "∏"}
_NAMES = ("log", "exp", "max", "min")
_SPACES = {",": "0.17em", ":": "0.22em", ";": "0.28em", " ": "0.28em", "quad": "1em"}
_SIZES = ("big", "Big", "bigl", "bigr", "Bigl", "Bigr", "left", "right")
_ACCENTS = {"tilde": "~", "hat": "^", "bar": "‾", "overline": "‾"}
_UPRIGHT = ("mathrm", "text", "operatorname", "textrm")


class Unsupported(ValueError):
    """A formula with something that this does not know."""


def to_mathml(tex: str, display: bool = False) -> str:
    """A formula as a `math` element, on a line of its own for `display`.

    Raises:
        Unsupported: it has something that is not known here.
    """
    body = _Parser([token for token in _TOKEN.findall(tex) if not token.isspace()], display).row(end=None)
    return f'<math display="{"block" if display else "inline"}">{body}</math>'


class _Parser:
    def __init__(self, tokens: list[str], display: bool) -> None:
        self.tokens, self.display, self.place = tokens, display, 0

    def row(self, end: str | None) -> str:
        """Everything up to `end`, as one element's children."""
        parts: list[str] = []
        while self.place < len(self.tokens):
            if self.tokens[self.place] == end:
                self.place += 1
                return "".join(parts)
            if self.tokens[self.place] == "}":
                raise Unsupported("a brace that nothing opened")
            parts.append(self.scripted())
        if end is not None:
            raise Unsupported("a brace that nothing closes")
        return "".join(parts)

    def scripted(self) -> str:
        """An atom with what stands under and over it."""
        large = self.tokens[self.place].removeprefix("\\") in _LARGE
        base = self.atom()
        scripts: dict[str, str] = {}
        while self.place < len(self.tokens) and self.tokens[self.place] in "^_":
            kind = self.tokens[self.place]
            self.place += 1
            if kind in scripts:
                raise Unsupported("two scripts in one place")
            scripts[kind] = self.argument()
        if not scripts:
            return base
        names = ("munder", "mover", "munderover") if large and self.display else ("msub", "msup", "msubsup")
        name = names[2] if len(scripts) == 2 else names["^" in scripts]
        return f"<{name}>{base}{scripts.get('_', '')}{scripts.get('^', '')}</{name}>"

    def argument(self) -> str:
        """A group in braces, or a single atom."""
        if self.place >= len(self.tokens):
            raise Unsupported("a formula that ends too early")
        if self.tokens[self.place] == "{":
            self.place += 1
            return f"<mrow>{self.row('}')}</mrow>"
        return self.atom()

    def atom(self) -> str:
        if self.place >= len(self.tokens):
            raise Unsupported("a formula that ends too early")
        token = self.tokens[self.place]
        if token == "{":
            return self.argument()
        self.place += 1
        if token.startswith("\\"):
            return self.command(token[1:])
        if token.isdigit():
            return self.digits(token)
        if token.isalpha():
            return f"<mi>{escape(token)}</mi>"
        if token in "^_&#~":
            raise Unsupported(token)
        # A stretchy bracket would grow with what stands beside it, not inside it.
        return f'<mo stretchy="false">{escape(token).replace("-", chr(0x2212))}</mo>'

    def digits(self, first: str) -> str:
        text = first
        while self.place < len(self.tokens) and re.fullmatch(r"[\d.]", self.tokens[self.place]):
            text += self.tokens[self.place]
            self.place += 1
        return f"<mn>{text}</mn>"

    def command(self, name: str) -> str:
        if name in _LETTERS:
            return f"<mi>{_LETTERS[name]}</mi>"
        if name in _LARGE:
            return f"<mo>{_LARGE[name]}</mo>"
        if name in _NAMES:
            return f'<mi>{name}</mi><mspace width="0.17em"></mspace>'
        if name in _SPACES:
            return f'<mspace width="{_SPACES[name]}"></mspace>'
        if name in _SIZES:
            return self.atom()
        if name in _OPERATORS:
            return f'<mo stretchy="false">{_OPERATORS[name]}</mo>'
        if name in _UPRIGHT:
            return f'<mi mathvariant="normal">{self.words()}</mi>'
        if name in _ACCENTS:
            stretchy = "true" if name == "overline" else "false"
            return f'<mover accent="true">{self.argument()}<mo stretchy="{stretchy}">{_ACCENTS[name]}</mo></mover>'
        if name == "frac":
            return f"<mfrac>{self.argument()}{self.argument()}</mfrac>"
        raise Unsupported(f"\\{name}")

    def words(self) -> str:
        """The letters of a group in braces, as they stand."""
        if self.place >= len(self.tokens) or self.tokens[self.place] != "{":
            raise Unsupported("a name without braces")
        if "}" not in self.tokens[self.place :]:
            raise Unsupported("a brace that nothing closes")
        end = self.tokens.index("}", self.place)
        letters = self.tokens[self.place + 1 : end]
        if any(letter.startswith("\\") or letter == "{" for letter in letters):
            raise Unsupported("a name with more than letters")
        self.place = end + 1
        return escape("".join(letters))
