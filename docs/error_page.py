"""The page of errors: the meaning of each code, with the messages, remedies and exit codes that the source gives it.

The source is not run: each way through a function tells which texts `what`, `remedy` and `code` have where an error is
made. Values that only a running program knows become `{name}`.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import regard.errors
from regard.data.report import WORDS
from regard.errors import CODES, RegardError

SOURCE = Path(regard.errors.__file__).parent
TITLES = {"I": "Images", "A": "Annotations and data sets", "C": "Settings", "K": "Weights", "T": "Training"}
INTRODUCTION = """# Errors

An error is one line: what was found, where, and what to do. Its code, as in `error C01`, is explained here. `{...}`
stands for a name or a number. The exit code is that of the command. Lines about data that stop nothing begin with
`fixed` (a value is corrected as it is read, the file stays as it is), `skipped` (left out of training), `warning` (used
as it is) or `note`.

"""
EXIT_CODES = {
    name: kind.exit_code
    for name, kind in vars(regard.errors).items()
    if isinstance(kind, type) and issubclass(kind, RegardError)
}
_MAX_DEPTH = 3  # of calls that hand a code to another function

Texts = dict[str, str | None]  # variables and their texts; None for what is not known


@dataclass(frozen=True, order=True)
class Message:
    """A message of a code. outcome: an exit code, or fixed, skipped, warning or note."""

    outcome: str
    what: str
    remedy: str


@dataclass
class Module:
    """What the functions of a file refer to."""

    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    constants: Texts = field(default_factory=dict)
    tables: dict[str, list[ast.expr]] = field(default_factory=dict)


@functools.cache
def messages_of_source() -> dict[str, set[Message]]:
    """Return the messages of each code; reading all files takes seconds."""
    return Reader(SOURCE).messages


def errors_page() -> str:
    """Return the page in Markdown."""
    messages = messages_of_source()
    parts = [INTRODUCTION]
    for letter, title in TITLES.items():
        parts.append(f"## {title}\n\n")
        for code, meaning in CODES.items():
            if code.startswith(letter):
                parts.append(f"### {code}: {meaning.rstrip('.')} {{ #{code.lower()} }}\n\n")
                parts.append(_list(messages[code]))
    return "".join(parts)


def _list(messages: set[Message]) -> str:
    """Return the messages of a code below each of its outcomes."""
    lines = []
    known = sorted(message for message in messages if not any(_covers(other.what, message.what) for other in messages))
    for outcome, group in itertools.groupby(known, lambda message: message.outcome):
        lines.append(f"Exit code {outcome}:\n" if outcome.isdigit() else f"`{outcome}` in a report:\n")
        for what, same in itertools.groupby(group, lambda message: message.what):
            remedies = " or ".join(_code(message.remedy) for message in same if message.remedy)
            lines.append(f"- {_code(what)}" + (f"<br>Remedy: {remedies}" if remedies else ""))
        lines.append("")
    return "\n".join(lines) + "\n"


def _covers(general: str, special: str) -> bool:
    """Return whether `special` is `general` with words in place of names in braces, or with other names."""
    names = re.compile(r"{[^}]*}")
    if names.sub("{}", general) == names.sub("{}", special):
        return general < special
    pattern = r"(\w+|{[^}]*})".join(map(re.escape, names.split(general)))
    return re.fullmatch(pattern, special) is not None


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


class Reader:
    """Reads all files below a folder; `messages` are those of each code."""

    def __init__(self, folder: Path) -> None:
        self.messages: dict[str, set[Message]] = {code: set() for code in CODES}
        self.shared = Module()  # names of all files, for what a file imports
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))]
        modules = [self._module(tree) for tree in trees]
        self.homes = {id(f): module for module in modules for f in module.functions.values()}
        for tree, module in zip(trees, modules, strict=True):
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    self._run(node.body, [dict.fromkeys(_defaults(node))], module, 0)

    def _module(self, tree: ast.Module) -> Module:
        module = Module()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                module.functions[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if isinstance(node.value, (ast.Tuple, ast.List)):
                    module.tables[name] = node.value.elts
                elif isinstance(node.value, ast.Constant) and isinstance(node.value.value, (int, str)):
                    number = isinstance(node.value.value, int)
                    module.constants[name] = f"{node.value.value:,}" if number else str(node.value.value)
                else:
                    module.constants[name] = self._texts(node.value, {}, module)[0]
        self.shared.functions |= module.functions
        self.shared.constants |= {name: text for name, text in module.constants.items() if text}
        return module

    # Ways through a function

    def _run(self, body: Sequence[ast.stmt], ways: list[Texts], module: Module, depth: int) -> list[Texts]:
        """Run statements on each way; return the ways that reach the end."""
        for statement in body:
            own = [node for node in ast.iter_child_nodes(statement) if isinstance(node, (ast.expr, ast.withitem))]
            calls = [inner for node in own for inner in ast.walk(node) if isinstance(inner, ast.Call)]
            for texts in ways if calls else ():
                self._note(calls, texts, module, depth)
            ways = [dict(way) for way in {tuple(way.items()) for way in self._step(statement, ways, module, depth)}]
        return ways

    def _step(self, statement: ast.stmt, ways: list[Texts], module: Module, depth: int) -> list[Texts]:
        def run(body: Sequence[ast.stmt], start: list[Texts] = ways) -> list[Texts]:
            return self._run(body, start, module, depth)

        match statement:
            case ast.Return() | ast.Raise() | ast.Continue() | ast.Break():
                return []
            case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
                return [way for texts in ways for way in self._bind(target, value, texts, module)]
            case ast.If(body=body, orelse=orelse):
                return run(body) + run(orelse)
            case ast.For(target=target, iter=rows, body=body):
                table = module.tables.get(rows.id) if isinstance(rows, ast.Name) else getattr(rows, "elts", None)
                items = table or [rows]
                starts = [way for item in items for texts in ways for way in self._bind(target, item, texts, module)]
                return ways + run(body, starts)
            case ast.While(body=body) | ast.With(body=body):
                return ways + run(body)
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
                return run(final, run(orelse, run(body)) + [way for h in handlers for way in run(h.body)])
            case ast.Match(cases=cases):
                return ways + [way for case in cases for way in run(case.body)]
        return ways

    def _bind(self, target: ast.expr, value: ast.expr, texts: Texts, module: Module) -> Iterator[Texts]:
        """Yield the texts after an assignment, for each text that the value can have."""
        if isinstance(value, ast.IfExp):
            yield from self._bind(target, value.body, texts, module)
            yield from self._bind(target, value.orelse, texts, module)
        elif isinstance(target, ast.Tuple):
            parts = getattr(value, "elts", None) or [ast.Constant(None)] * len(target.elts)
            ways = [texts]
            for name, part in zip(target.elts, parts, strict=False):
                ways = [after for way in ways for after in self._bind(name, part, way, module)]
            yield from ways
        elif isinstance(target, ast.Name):
            if isinstance(value, (ast.Tuple, ast.List)):
                module.tables[target.id] = value.elts
            yield from ({**texts, target.id: text or None} for text in self._texts(value, texts, module))
        else:
            yield texts

    # Errors made on a way

    def _note(self, calls: Sequence[ast.Call], texts: Texts, module: Module, depth: int) -> None:
        """Add the messages of calls."""
        for call in calls:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            name = texts.get(name) or name  # a variable that holds the class of an error
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            first = given.get("code") or (call.args[0] if call.args else None)
            if name in EXIT_CODES and call.args:
                self._add(given.get("code"), call.args[0], given.get("remedy"), EXIT_CODES[name], texts, module)
            elif name in ("error", "fail", "fail_at") and len(call.args) > 1:  # of Report
                self._add(first, call.args[1], given.get("remedy"), EXIT_CODES["DataError"], texts, module)
            elif name in ("add", "Issue") and len(call.args) > 2:  # Report.add
                for severity in self._texts(call.args[1], texts, module):
                    self._add(first, call.args[2], None, WORDS.get(str(severity), severity), texts, module)
            elif depth < _MAX_DEPTH and (function := self._function(name, module)):
                for arguments in self._arguments(call, function, texts, module):
                    if CODES.keys() & set(arguments.values()):
                        self._run(function.body, [arguments], self.homes[id(function)], depth + 1)

    def _add(
        self,
        code: ast.expr | None,
        what: ast.expr,
        remedy: ast.expr | None,
        outcome: object,
        texts: Texts,
        module: Module,
    ) -> None:
        """Add a message of a code, for each text that the expressions can have."""
        options = [[None] if node is None else self._texts(node, texts, module) for node in (code, what, remedy)]
        for key, message, way_out in itertools.product(*options):
            if key in CODES and (message or not isinstance(what, ast.Name)):
                self.messages[key].add(Message(str(outcome), message or f"{{{_name(what)}}}", way_out or ""))

    def _function(self, name: str, module: Module) -> ast.FunctionDef | None:
        return module.functions.get(name) or self.shared.functions.get(name)

    def _arguments(self, call: ast.Call, function: ast.FunctionDef, texts: Texts, module: Module) -> Iterator[Texts]:
        names = [argument.arg for argument in function.args.args]
        given = {**dict(zip(names, call.args, strict=False)), **{word.arg: word.value for word in call.keywords}}
        options = [
            [(name, text) for text in self._texts(value, texts, module)] for name, value in given.items() if name
        ]
        yield from (_defaults(function) | dict(chosen) for chosen in itertools.product(*options))

    # Texts of expressions

    def _texts(self, node: ast.expr, texts: Texts, module: Module) -> list[str | None]:
        """Return all texts that an expression can have; None stands for what is not known."""
        match node:
            case ast.Constant(value=str() as text):
                return [text]
            case ast.Name(id=name) if name in EXIT_CODES:
                return [name]
            case ast.Name(id=name):
                return [texts[name] if name in texts else module.constants.get(name) or self.shared.constants.get(name)]
            case ast.IfExp(body=body, orelse=orelse):
                return self._texts(body, texts, module) + self._texts(orelse, texts, module)
            case ast.JoinedStr(values=values):
                return list(map("".join, itertools.product(*(self._parts(value, texts, module) for value in values))))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                sides = (self._parts(side, texts, module) for side in (left, right))
                return list(map("".join, itertools.product(*sides))) if _holds_text(node) else [None]
            case ast.Call(func=ast.Name(id="counted"), args=[number, *forms], keywords=words):
                given = {word.arg: word.value for word in words}
                count = f"{{{_name(number)}}}" + (f" of {{{_name(given['of'])}}}" if "of" in given else "")
                ending = ("s" if len(forms) == 1 else "") + (f" {_for_many(given['verb'])}" if "verb" in given else "")
                nouns = self._texts(forms[-1], texts, module)
                return [f"{count} {noun or f'{{{_name(forms[-1])}}}'}{ending}" for noun in nouns]
            case ast.Call(func=ast.Name(id=name)) if function := self._function(name, module):
                home = self.homes[id(function)] if hasattr(self, "homes") else module
                results = [inner.value for inner in ast.walk(function) if isinstance(inner, ast.Return)]
                plain = [result for result in results if result and _is_text(result)]
                return [text for result in plain for text in self._texts(result, _defaults(function), home)] or [None]
        return [None]

    def _parts(self, node: ast.expr, texts: Texts, module: Module) -> list[str]:
        """Return the texts of a part of an f-string, or its name in braces."""
        inner = node.value if isinstance(node, ast.FormattedValue) else node
        is_counted = isinstance(inner, ast.Call) and getattr(inner.func, "id", "") == "counted"
        known = self._texts(inner, texts, module) if is_counted or not isinstance(inner, ast.Call) else [None]
        return [text if text is not None else f"{{{_name(inner)}}}" for text in known]


def _defaults(function: ast.FunctionDef) -> Texts:
    """Return the parameters of a function with those defaults that are texts."""
    plain, named = function.args.args, function.args.kwonlyargs
    given = [None] * (len(plain) - len(function.args.defaults)) + [*function.args.defaults, *function.args.kw_defaults]
    texts = [value.value if isinstance(value, ast.Constant) else None for value in given]
    return {a.arg: text if isinstance(text, str) else None for a, text in zip([*plain, *named], texts, strict=True)}


def _is_text(node: ast.expr) -> bool:
    sides = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    return all(isinstance(side, ast.JoinedStr) or _holds_text(side) for side in sides)


def _for_many(verb: ast.expr) -> str:
    """Return the plural of a verb for `counted`."""
    match verb:
        case ast.Name(id=("IS" | "HAS" | "WAS") as name):
            return str(getattr(regard.errors, name)[1])
        case ast.Tuple(elts=[_, ast.Constant(value=str() as many)]):
            return many
    return f"{{{_name(verb)}}}"


def _holds_text(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Constant) and isinstance(inner.value, str) for inner in ast.walk(node))


def _name(node: ast.expr) -> str:
    """Return a short name for a value: the variable in it."""
    match node:
        case ast.Name(id=name):
            return name.strip("_").lower()
        case ast.Attribute(attr="__name__"):
            return "type"
        case ast.Attribute(attr=name):
            return name.strip("_")
        case ast.Call(func=ast.Name(id="len"), args=[_]):
            return "number"
        case ast.Call(func=ast.Name(id="getattr")):
            return "value"
        case ast.Call(args=[first, *_]) if _name(first) != "...":
            return _name(first)
        case ast.Call(func=ast.Attribute(value=value)) | ast.Subscript(value=value) | ast.BinOp(left=value):
            return _name(value)
        case ast.GeneratorExp(elt=value) | ast.ListComp(elt=value):
            return _name(value)
    return "..."
