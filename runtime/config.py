"""Configuration, declared once as frozen dataclasses and loaded from TOML, environment and flags.

A key is declared with `setting()` in a frozen dataclass; a nested table with `section()`; an array
of tables with `tables()`. That one declaration gives the TOML key, the environment variable
(`TIDEGATE_` + the key's path, upper case, `_` between), the flag (`--path-to-key`), the check of
type and bounds, and the row in docs/configuration.md. Later sources win: defaults, file,
environment, flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "ConfigError",
    "Key",
    "add_arguments",
    "flags_of",
    "keys",
    "load",
    "misspelt",
    "section",
    "setting",
    "tables",
]

T = TypeVar("T")

ENVIRONMENT_PREFIX = "TIDEGATE_"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?")
_SIZE_FACTORS = {"": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kMGT", 1)
    for suffix, base in (("", 1000), ("i", 1024))
}
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


class ConfigError(Exception):
    """A configuration that cannot be used; `str()` is one line: where, what, what to do.

    Attributes:
        problems: Every problem found, one line each; `str()` shows the first.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        more = len(problems) - 1
        super().__init__(problems[0] + (f" (and {more} more)" if more else ""))


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002 - the word argparse uses too
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    flag: str = "",
    secret: bool = False,
) -> Any:
    """Declare one key of a configuration dataclass.

    Args:
        default: The value when no source gives one; without it the key is required.
        help: One sentence for `--help` and the reference page.
        unit: The unit of a number, also the last part of the key's name (`ms`, `bytes`, `s`).
            A number in `bytes` may be written as a text with a size suffix: "64MiB".
        minimum: The least value allowed.
        maximum: The greatest value allowed.
        choices: The only texts allowed.
        flag: A short flag such as `--data`; the long one made from the path works as well.
        secret: Never printed or logged.
    """
    metadata = {
        "kind": "setting",
        "help": help,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "flag": flag,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def section(cls: type, *, help: str) -> Any:  # noqa: A002
    """Declare a nested table whose keys are the settings of dataclass `cls`."""
    return dataclasses.field(default_factory=cls, metadata={"kind": "section", "help": help})


def tables(cls: type, *, help: str) -> Any:  # noqa: A002
    """Declare an array of tables; the field's type is `tuple[cls, ...]`, its default is empty."""
    return dataclasses.field(default=(), metadata={"kind": "tables", "cls": cls, "help": help})


@dataclass(slots=True, frozen=True)
class Key:
    """One declared key, as the reference page and `--help` show it."""

    path: tuple[str, ...]
    type: Any
    kind: str  # "setting", "section" or "tables"
    metadata: Mapping[str, Any]
    default: Any  # dataclasses.MISSING when required

    @property
    def name(self) -> str:
        """The key's dotted path."""
        return ".".join(self.path)

    @property
    def environment(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + "_".join(self.path).upper()

    @property
    def flag(self) -> str:
        """The long flag that sets it."""
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def expected(self) -> str:
        """What a value has to be, in words."""
        return _expected(self.type, self.metadata)


def keys(cls: type, path: tuple[str, ...] = ()) -> Iterator[Key]:
    """Yield every key of a configuration dataclass, sections and tables before what is in them."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = field.metadata.get("kind")
        if kind is None:
            raise TypeError(f"{cls.__name__}.{field.name} is not declared with setting()")
        here = (*path, field.name)
        yield Key(here, hints[field.name], kind, field.metadata, field.default)
        if kind == "section":
            yield from keys(hints[field.name], here)


def load(
    cls: type[T],
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> T:
    """Build a configuration from its sources.

    Args:
        cls: The dataclass to fill.
        file: A TOML file, or None.
        environment: The process's environment; only names starting `TIDEGATE_` are looked at.
        flags: Values by dotted key, as `flags_of()` gives them.

    Raises:
        ConfigError: with every problem in all sources, each on one line.
    """
    problems: list[str] = []
    data = _read(file) if file is not None else {}
    values: dict[str, Any] = {}
    where = str(file) if file is not None else ""
    _collect(cls, data, (), where, values, problems)
    for key in keys(cls):
        if key.kind == "section":
            continue
        for source, texts, name in (
            ("environment", environment or {}, key.environment),
            ("command line", flags or {}, key.name),
        ):
            if name in texts:
                shown = key.environment if source == "environment" else key.flag
                _take(key, _from_text(key, texts[name]), f"{source}: {shown}", values, problems)
    if problems:
        raise ConfigError(*problems)
    return _build(cls, (), values, where or "configuration")


def misspelt(environment: Mapping[str, str], cls: type) -> dict[str, str]:
    """Return the variables that look like a setting of `cls` and are none, with the nearest one.

    Others are somebody else's: of another command, or of who started the process.
    """
    known = [key.environment for key in keys(cls) if key.kind != "section"]
    near = {
        name: difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        for name in environment
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known
    }
    return {name: match[0] for name, match in near.items() if match}


def add_arguments(
    parser: argparse.ArgumentParser, cls: type, *, hidden: tuple[str, ...] = ()
) -> None:
    """Give `parser` one flag for every setting of `cls`.

    Args:
        parser: Gets a group for each section.
        cls: The configuration dataclass.
        hidden: Top-level sections whose flags work without being listed in `--help`.
    """
    groups: dict[str, Any] = {}
    # a short flag belongs to the key that is declared first; long ones are all different
    taken = set[str]()
    for key in keys(cls):
        listed = key.path[0] not in hidden
        if key.kind == "section":
            if listed:
                title = f"[{key.name}]"
                groups[key.name] = parser.add_argument_group(title, key.metadata["help"])
            continue
        if key.kind == "tables":
            continue
        target = groups.get(".".join(key.path[:-1]), parser)
        names = [name for name in (key.metadata["flag"], key.flag) if name and name not in taken]
        if not names:  # `edge_port` beside `[edge] port`: the flag is the outer key's
            continue
        taken.update(names)
        default = "" if key.default in (dataclasses.MISSING, None, "") else f" [{key.default}]"
        target.add_argument(
            *dict.fromkeys(names),
            dest=key.name,
            default=argparse.SUPPRESS,
            metavar=_metavar(key),
            help=(key.metadata["help"] + default).replace("%", "%%")
            if listed
            else argparse.SUPPRESS,
        )


def flags_of(arguments: argparse.Namespace, cls: type) -> dict[str, str]:
    """Return the flags a user really gave, by dotted key."""
    given = vars(arguments)
    return {key.name: given[key.name] for key in keys(cls) if key.name in given}


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; give a TOML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start} is not UTF-8; give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None


def _collect(
    cls: type,
    data: Mapping[str, Any],
    path: tuple[str, ...],
    where: str,
    values: dict[str, Any],
    problems: list[str],
) -> None:
    """Take what a table of the file says into `values`, by dotted key."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, value in data.items():
        here = (*path, name)
        field = fields.get(name)
        if field is None:
            problems.append(_unknown(where, here, list(fields)))
            continue
        key = Key(here, hints[name], field.metadata["kind"], field.metadata, field.default)
        if key.kind != "section":
            _take(key, value, f"{where}: {key.name}", values, problems)
        elif isinstance(value, Mapping):
            _collect(hints[name], value, here, where, values, problems)
        else:
            problems.append(f"{where}: {key.name}: expected a table [{key.name}], got {value!r}")


def _unknown(where: str, path: tuple[str, ...], known: list[str]) -> str:
    near = difflib.get_close_matches(path[-1], known, n=1)
    table = f"[{'.'.join(path[:-1])}]" if len(path) > 1 else "the top level"
    hint = f"did you mean '{near[0]}'?" if near else f"{table} has: {', '.join(sorted(known))}"
    return f"{where}: unknown key '{'.'.join(path)}'; {hint}"


def _take(key: Key, value: Any, where: str, values: dict[str, Any], problems: list[str]) -> None:
    if key.kind == "tables":
        values[key.name] = _tables(key, value, where, problems)
        return
    try:
        values[key.name] = _convert(key.type, value, key.metadata)
    except ValueError as error:
        detail = str(error)
        shown = "a secret" if key.metadata["secret"] else repr(value)
        problems.append(f"{where}: expected {key.expected}, got {shown}{detail and f' ({detail})'}")


def _tables(key: Key, value: Any, where: str, problems: list[str]) -> tuple[Any, ...]:
    cls = key.metadata["cls"]
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        problems.append(f"{where}: expected tables [[{key.name}]], got {value!r}")
        return ()
    built = []
    file = where.split(":", maxsplit=1)[0]
    for number, item in enumerate(value, 1):
        inner: dict[str, Any] = {}
        before = len(problems)
        _collect(cls, item, (), f"{file}: {key.name}[{number}]", inner, problems)
        if len(problems) == before:
            try:
                built.append(_build(cls, (), inner, f"{file}: {key.name}[{number}]"))
            except ConfigError as error:
                problems.extend(error.problems)
    return tuple(built)


def _build(cls: type[T], path: tuple[str, ...], values: Mapping[str, Any], where: str) -> T:
    arguments: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        here = (*path, field.name)
        name = ".".join(here)
        if field.metadata["kind"] == "section":
            arguments[field.name] = _build(hints[field.name], here, values, where)
        elif name in values:
            arguments[field.name] = values[name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            expected = _expected(hints[field.name], field.metadata)
            raise ConfigError(f"{where}: '{name}' is missing; expected {expected}")
    try:
        return cls(**arguments)
    except ValueError as error:  # a dataclass's own __post_init__ check across keys
        raise ConfigError(f"{where}: {'.'.join(path) + ': ' if path else ''}{error}") from None


def _from_text(key: Key, text: str) -> Any:
    """Turn an environment variable's or a flag's text into what TOML would have given."""
    if key.kind == "tables" or (_is_tuple(key.type) and text.lstrip().startswith("[")):
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text
    if _is_tuple(key.type):
        return [part.strip() for part in text.split(",") if part.strip()]
    kind, optional = _plain(key.type)
    if optional and not text:
        return None
    if kind is bool:
        lowered = text.lower()
        return lowered in _TRUE if lowered in _TRUE | _FALSE else text
    for number in (int, float) if kind in (int, float) else ():
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _convert(kind: Any, value: Any, metadata: Mapping[str, Any]) -> Any:
    """Return `value` as `kind`, or raise ValueError (its text may add a detail)."""
    plain, optional = _plain(kind)
    if value is None and optional:
        return None
    if typing.get_origin(plain) is dict:  # a table whose keys are somebody else's
        if not isinstance(value, Mapping):
            raise ValueError
        return dict(value)
    if _is_tuple(plain):
        if not isinstance(value, list):
            raise ValueError
        item = typing.get_args(plain)[0]
        return tuple(_convert(item, element, metadata) for element in value)
    if metadata.get("unit") == "bytes" and isinstance(value, str):
        value = _size(value)
    converted = _scalar(plain, value)
    if isinstance(converted, int | float) and not isinstance(converted, bool):
        minimum, maximum = metadata.get("minimum"), metadata.get("maximum")
        if (minimum is not None and converted < minimum) or (
            maximum is not None and converted > maximum
        ):
            raise ValueError
    if metadata.get("choices") and converted not in metadata["choices"]:
        near = difflib.get_close_matches(str(value), metadata["choices"], n=1, cutoff=0.5)
        raise ValueError(f"did you mean '{near[0]}'?" if near else "")
    return converted


def _scalar(kind: Any, value: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is float:
        # not a number is never a setting: every comparison with a bound would pass it
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # noqa: PLR0124
            return float(value)
    elif kind is Path:
        if isinstance(value, str) and value:
            return Path(value).expanduser()
    elif kind is str and isinstance(value, str):
        return value
    raise ValueError


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("write bytes as a number or like 64MiB")
    prefix = (match[2] or "").replace("K", "k")
    return int(float(match[1]) * _SIZE_FACTORS[prefix])


def _plain(kind: Any) -> tuple[Any, bool]:
    """Return (type without None, whether None is allowed)."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        rest = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return rest[0], len(rest) < len(typing.get_args(kind))
    return kind, False


def _is_tuple(kind: Any) -> bool:
    return typing.get_origin(_plain(kind)[0]) is tuple


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _expected(kind: Any, metadata: Mapping[str, Any]) -> str:
    plain, _ = _plain(kind)
    if metadata.get("kind") == "tables":
        return "an array of tables"
    if metadata.get("choices"):
        return "one of " + ", ".join(f"'{choice}'" for choice in metadata["choices"])
    if _is_tuple(kind):
        word = _WORDS.get(typing.get_args(plain)[0], "a text")
        return f"a list, each {word}"
    text = _WORDS.get(plain, "a path" if plain is Path else "a value")
    if metadata.get("unit"):
        text += f" of {metadata['unit']}"
    minimum, maximum = metadata.get("minimum"), metadata.get("maximum")
    if minimum is not None and maximum is not None:
        return f"{text} from {_exact(minimum)} to {_exact(maximum)}"
    if minimum is not None:
        return f"{text}, at least {_exact(minimum)}"
    return f"{text}, at most {_exact(maximum)}" if maximum is not None else text


def _exact(bound: float) -> str:
    """Return a bound with all its digits: one that is rounded may be past itself."""
    return str(int(bound)) if bound == int(bound) else str(bound)


def _metavar(key: Key) -> str:
    if key.metadata["choices"]:
        return "{" + ",".join(key.metadata["choices"]) + "}"
    plain, _ = _plain(key.type)
    if key.metadata["unit"]:
        return str(key.metadata["unit"]).upper()
    return {bool: "true|false", int: "N", float: "X", Path: "PATH"}.get(plain, "TEXT")
