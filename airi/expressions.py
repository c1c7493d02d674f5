"""CEL expressions: typed, compiled once, evaluated in microseconds, bounded in every direction.

The language is Google's Common Expression Language (cel-cpp). What a tenant can write is limited three times:
by this module (length, comprehension nesting, size of the values handed in), by the compiler (32 levels of
nesting) and by the evaluator (10,000 iterations an evaluation; ``matches`` is RE2, so linear in its input).

Variables may have dotted names (``model.region``): each is declared with its type, so that a misspelt field is
an error when the expression is compiled, not when a call is served.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from cel_expr_python import cel
from cel_expr_python.ext import ext_math, ext_strings

from airi.errors import AiriError, InvalidRequestError
from airi.expression_tree import Shape, inspect

MAX_LENGTH: Final = 4_096
"""Characters an expression may have."""
MAX_NESTING: Final = 2
"""Comprehensions (``all``, ``exists``, ``map``, ``filter``…) that may stand within one another."""
MAX_INPUT_NODES: Final = 100_000
MAX_INPUT_CHARS: Final = 4_000_000
MAX_INPUT_DEPTH: Final = 64
MAX_GROWTH: Final = 256_000_000
"""Characters that an expression which joins, adds or replaces may make, by an upper estimate."""
MAX_WORK: Final = 2_000_000_000
"""Characters that an expression with a comprehension may touch, by an upper estimate."""

_TYPES: dict[str, Any] = {
    "bool": cel.Type.BOOL,
    "int": cel.Type.INT,
    "double": cel.Type.DOUBLE,
    "string": cel.Type.STRING,
    "dyn": cel.Type.DYN,
    "list(string)": cel.Type.List(cel.Type.STRING),
    "map(string,int)": cel.Type.Map(cel.Type.STRING, cel.Type.INT),
    "map(string,string)": cel.Type.Map(cel.Type.STRING, cel.Type.STRING),
    "map(string,dyn)": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
}
_FUNCTIONS = [
    "all", "exists", "exists_one", "filter", "map", "has", "size", "contains", "startsWith", "endsWith", "matches",
    "lowerAscii", "upperAscii", "replace", "split", "join", "trim", "indexOf", "lastIndexOf", "substring", "charAt",
    "format", "string", "int", "double", "bool", "dyn", "type", "timestamp", "duration",
    "math.greatest", "math.least", "math.abs", "math.ceil", "math.floor", "math.round",
]  # fmt: skip
_ERROR = cel.Type.ERROR
_UNKNOWN = cel.Type.UNKNOWN
_MESSAGE = re.compile(r"<input>:(?P<line>\d+):(?P<column>\d+): (?P<what>[^\n]*)")
_UNDECLARED = re.compile(r"undeclared reference to '([^']+)'")
_CODE = re.compile(r"^[A-Z_]+: |\s*\[[A-Z_]+\]$")


class ExpressionError(InvalidRequestError):
    """An expression that does not compile. ``line`` and ``column`` count from 1; 0 when unknown."""

    code = "invalid_expression"

    def __init__(self, message: str, *, line: int = 0, column: int = 0) -> None:
        where = f"{line}:{column}: " if line else ""
        super().__init__(where + message)
        self.line = line
        self.column = column


class EvaluationError(AiriError):
    """An expression that compiled but has no value for these inputs (a missing key, a wrong type, too much work)."""

    status = 400
    type = "invalid_request_error"
    code = "expression_failed"


class Declarations:
    """Variable names (dotted ones too) with their types; makes the environment that expressions share.

    Types: ``bool int double string dyn list(string) map(string,int) map(string,string) map(string,dyn)``.
    """

    __slots__ = ("_env", "types")

    def __init__(self, types: Mapping[str, str]) -> None:
        self.types = dict(types)
        variables = {name: _TYPES[kind] for name, kind in types.items()}
        self._env = cel.NewEnv(variables=variables, extensions=[ext_strings.ExtStrings(), ext_math.ExtMath()])

    def activation(self, values: Mapping[str, Any]) -> Any:
        """Return values made ready once for several evaluations; names that are not used may be left out."""
        return self._env.Activation(values)

    def compile_text(self, text: str) -> Any:
        """Compile without checks of our own (see :func:`compile`)."""
        return self._env.compile(text)


class Program:
    """A compiled expression. ``references`` are the declared variables that it reads; safe to share among threads."""

    __slots__ = ("_declarations", "_expression", "_shape", "_value_type", "constant", "references", "text")

    def __init__(self, text: str, declarations: Declarations, expression: Any, shape: Shape) -> None:
        self.text = text
        self.references = frozenset(shape.names & declarations.types.keys())
        self.constant = not self.references
        self._shape = shape
        self._expression = expression
        self._declarations = declarations
        self._value_type = expression.return_type().name()

    @property
    def result_type(self) -> str:
        """The type that the compiler found: ``BOOL``, ``STRING``, ``DYN``, …"""
        return str(self._value_type)

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Return the plain value (JSON-like) for ``values``; raise :class:`EvaluationError`."""
        needed = {name: values[name] for name in self.references if name in values}
        self._check_work(*_measure(needed.values()))
        try:
            activation = self._declarations.activation(needed)
        except RuntimeError as error:
            raise EvaluationError(f"{self.text}: {_plain(error)}") from None
        return self.evaluate_in(activation)

    def _check_work(self, chars: int, nodes: int) -> None:
        size = len(self.text)
        shape = self._shape
        work = shape.work(chars + size, nodes + size)
        if work > (MAX_GROWTH if shape.grows else MAX_WORK):
            raise EvaluationError(f"{self.text}: too much work for values of {chars} characters")

    def evaluate_in(self, activation: Any) -> Any:
        """Return the plain value within an activation of the same declarations (about 4 µs)."""
        try:
            result = self._expression.eval(activation)
        except RuntimeError as error:
            raise EvaluationError(f"{self.text}: {_plain(error)}") from None
        kind = result.type()
        if kind in (_ERROR, _UNKNOWN):
            raise EvaluationError(f"{self.text}: {_plain(result.value())}")
        return result.plain_value()


def compile(text: str, declarations: Declarations, *, expect: str | None = None) -> Program:  # noqa: A001  # the public name of the operation
    """Compile ``text``; raise :class:`ExpressionError` with position and, where one is near, a suggestion.

    ``expect`` (``"bool"``) additionally demands the type of the result; ``dyn`` is taken on trust.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"the expression has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    try:
        expression = declarations.compile_text(text)
    except RuntimeError as error:
        raise _compile_error(str(error), declarations) from None
    shape = inspect(expression.serialize())
    if shape.nesting > MAX_NESTING:
        raise ExpressionError(
            f"{shape.nesting} comprehensions within one another; at most {MAX_NESTING} are allowed"
        )
    program = Program(text, declarations, expression, shape)
    if expect is not None and program.result_type.lower() not in (expect, "dyn"):
        raise ExpressionError(f"the expression is of type {program.result_type.lower()}; {expect} is needed")
    return program


def _compile_error(raw: str, declarations: Declarations) -> ExpressionError:
    match = _MESSAGE.search(raw)
    if match is None:
        if "recursion" in raw:
            return ExpressionError("the expression is nested too deeply (32 levels); split it")
        return ExpressionError(_plain(raw))
    what = _CODE.sub("", match["what"]).replace(" (in container '')", "")
    line, column = max(int(match["line"]), 0), max(int(match["column"]), 0)
    undeclared = _UNDECLARED.search(what)
    if undeclared:
        what = f"unknown name '{undeclared[1]}'" + _suggest(undeclared[1], declarations)
        column = max(1, column - undeclared[1].rfind(".")) if "." in undeclared[1] else column
    elif "Syntax error" in what:
        what = what.partition(" expecting ")[0]
    return ExpressionError(what, line=line, column=column)


def _suggest(name: str, declarations: Declarations) -> str:
    near = difflib.get_close_matches(name, [*declarations.types, *_FUNCTIONS], n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    fields = sorted(known for known in declarations.types if known.startswith(name + "."))
    if fields:
        return f"; it has the fields {', '.join(fields)}"
    roots = sorted({known.partition(".")[0] for known in declarations.types})
    return f"; known names begin with {', '.join(roots)}"


def _plain(message: object) -> str:
    return _CODE.sub("", _CODE.sub("", str(message).partition("\n")[0])).strip()


def _measure(values: Iterable[Any]) -> tuple[int, int]:
    """Return (characters, nodes); refuse values whose conversion alone would take long."""
    nodes = chars = 0
    stack = [(value, 0) for value in values]
    while stack:
        value, depth = stack.pop()
        nodes += 1
        if isinstance(value, str):
            chars += len(value)
            if "\0" in value:
                # The library would silently cut the text there.
                raise EvaluationError("a text handed to an expression holds a NUL character")
        elif isinstance(value, Mapping):
            stack.extend((item, depth + 1) for item in value.values())
            chars += sum(len(key) for key in value if isinstance(key, str))
        elif isinstance(value, list):
            stack.extend((item, depth + 1) for item in value)
        if nodes > MAX_INPUT_NODES or chars > MAX_INPUT_CHARS or depth > MAX_INPUT_DEPTH:
            raise EvaluationError(
                f"the values handed to an expression are too large (at most {MAX_INPUT_NODES} items, "
                f"{MAX_INPUT_CHARS} characters, {MAX_INPUT_DEPTH} levels)"
            )
    return chars, nodes


# --- templates: "text ${{ expression }} text" -------------------------------------------------------------------


class Template:
    """A string with ``${{ expression }}`` in it, compiled.

    With a single expression and nothing around it the value keeps its type; else values are joined as text
    (strings as they are, everything else as JSON).
    """

    __slots__ = ("parts", "references", "text")

    def __init__(self, text: str, parts: tuple[str | Program, ...]) -> None:
        self.text = text
        self.parts = parts
        self.references = frozenset(
            name for part in parts if isinstance(part, Program) for name in part.references
        )

    def render(self, values: Mapping[str, Any]) -> Any:
        """Return the native value (one expression alone) or the text; raise :class:`EvaluationError`."""
        if len(self.parts) == 1:
            only = self.parts[0]
            return only if isinstance(only, str) else only.evaluate(values)
        return "".join(
            part if isinstance(part, str) else _as_text(part.evaluate(values)) for part in self.parts
        )


def compile_template(text: str, declarations: Declarations) -> Template:
    """Compile a template; raise :class:`ExpressionError` whose column counts within the whole string's line."""
    parts: list[str | Program] = []
    for literal, expression, offset in _split_template(text):
        if literal:
            parts.append(literal)
        if expression is None:
            continue
        stripped = expression.strip()
        try:
            parts.append(compile(stripped, declarations))
        except ExpressionError as error:
            shift = offset + expression.index(stripped) if stripped else offset
            line, column = _position(text, shift, error.line, error.column)
            raise ExpressionError(
                error.message.partition(": ")[2] or error.message, line=line, column=column
            ) from None
    return Template(text, tuple(parts) or ("",))


def render(template: str, values: Mapping[str, Any], declarations: Declarations) -> Any:
    """Compile and render at once; for what is used once. Keep a :class:`Template` for what is used often."""
    return compile_template(template, declarations).render(values)


def _split_template(text: str) -> Iterator[tuple[str, str | None, int]]:
    """Yield (literal before, expression or ``None``, offset of the expression); braces in CEL strings are skipped."""
    position = 0
    while (start := text.find("${{", position)) != -1:
        end = _template_end(text, start + 3)
        if end == -1:
            line, column = _position(text, start, 1, 1)
            raise ExpressionError("'${{' without '}}'", line=line, column=column)
        yield text[position:start], text[start + 3 : end], start + 3
        position = end + 2
    yield text[position:], None, position


def _template_end(text: str, position: int) -> int:
    quote = ""
    depth = 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\":
                position += 1
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char == "{":
            depth += 1
        elif char == "}":
            if depth == 0 and text.startswith("}}", position):
                return position
            depth -= 1
        position += 1
    return -1


def _position(text: str, offset: int, line: int, column: int) -> tuple[int, int]:
    before = text[:offset]
    base_line = before.count("\n") + 1
    base_column = offset - (before.rfind("\n") + 1) if line <= 1 else 0
    return base_line + max(line, 1) - 1, base_column + max(column, 1)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
