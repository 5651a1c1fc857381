"""Read a study from a TOML file: data, teachers, arms, folds, seeds and claims."""

from __future__ import annotations

import copy
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from antigram.pipeline.corpora import find_corpus
from antigram.pipeline.errors import InputError
from antigram.studies.compare.design import (
    ARMS,
    BASELINE,
    FOLD,
    Arm,
    Claim,
    Setting,
    Study,
    Teacher,
    Training,
)

__all__ = ["library", "read_study", "study_of"]

LIBRARY = Path(__file__).resolve().parent.parent / "library"
_SHARED = ("task", "against", "groups")  # of all settings, unless one has its own
# Arguments of `prepare` that mean the same for every corpus.
_GENERAL = {"corpus", "limit_per_class", "limit", "seed", "dtype", "balance", "noise", "seconds"}


def library() -> list[str]:
    """Return the names of the studies that antigram comes with."""
    return sorted(path.stem for path in LIBRARY.glob("*.toml"))


def read_study(
    file: Path | str,
    *,
    preset: str | None = None,
    corpus_map: Mapping[str, str] | None = None,
) -> tuple[Study, dict[str, str]]:
    """Read a study from a file, or one of antigram's own studies by its name.

    Args:
        file: a TOML file, or a name such as ``is-it-invariance``.
        preset: name of a table ``presets.NAME`` of the file, whose entries replace others.
        corpus_map: corpus -> the corpus that stands in for it.

    Returns:
        The study, and the stand-ins that it uses: corpus -> corpus.

    Raises:
        InputError: there is no such file, or it is no study; the message names the entry.
    """
    path = Path(file)
    if not path.suffix and not path.exists():
        path = LIBRARY / f"{file}.toml"
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{file}: is no file, and no study of antigram's; there are {', '.join(library())}"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    try:
        return study_of(content, path.stem, preset=preset, corpus_map=corpus_map or {})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def study_of(
    content: Mapping[str, Any],
    name: str,
    *,
    preset: str | None = None,
    corpus_map: Mapping[str, str] | None = None,
) -> tuple[Study, dict[str, str]]:
    """Make a study from the tables of a file.

    Args:
        content: parsed TOML.
        name: name of the study.
        preset: see `read_study`.
        corpus_map: see `read_study`.

    Raises:
        InputError: an entry is missing, unknown or of another type.
    """
    tables = copy.deepcopy(dict(content))
    presets = tables.pop("presets", {})
    if preset is not None and preset in presets:
        tables = _merged(tables, presets[preset])
        name = f"{name}-{preset}"
    elif preset not in (None, "paper"):
        raise InputError(f"preset {preset!r}: wanted {', '.join(('paper', *presets))}")
    shared = {key: tables.pop(key) for key in _SHARED if key in tables}
    tables["settings"] = {
        key: {**shared, **_table(value, f"settings.{key}")}
        for key, value in _table(tables.get("settings", {}), "settings").items()
    }
    stand_ins = _stand_in(tables, corpus_map or {})
    if "layers" in tables:
        tables["at_layers"] = tables.pop("layers")
    plain = {"mode": BASELINE, "about": ARMS[BASELINE].about}
    tables["arms"] = {BASELINE: plain, **_table(tables.get("arms", {}), "arms")}
    study = _made(Study, {**tables, "name": name}, "")
    assert isinstance(study, Study)
    return study, stand_ins


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables in which other entries replace some; ``"none"`` removes an entry."""
    merged = dict(content)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        elif value == "none":
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: wanted a table")
    return value


def _stand_in(content: dict[str, Any], corpus_map: Mapping[str, str]) -> dict[str, str]:
    """Replace corpora and their labels in the tables of a study, in place.

    A label that the stand-in lacks becomes the label at the same position in the stand-in's list.
    Options that only the original corpus has are left out.
    """
    used = {}
    for name, wanted in list(_table(content.get("data", {}), "data").items()):
        corpus = str(_table(wanted, f"data.{name}").get("corpus"))
        if corpus not in corpus_map or corpus_map[corpus] == corpus:
            continue
        old, new = find_corpus(corpus), find_corpus(corpus_map[corpus])
        used[corpus] = new.name

        def label(text: str, old: Any = old, new: Any = new) -> str:  # noqa: ANN401
            if text in new.labels or text not in old.labels:
                return text
            return str(new.labels[min(old.labels.index(text), len(new.labels) - 1)])

        kept = {key: value for key, value in wanted.items() if key in _GENERAL}
        if new.has_noise or old.has_noise:
            kept.pop("noise", None)
        if "split" in wanted:
            kind, _, of = wanted["split"].partition(":")
            kept["split"] = f"{kind}:{label(of)}" if of else kind
            if kind == "official" and not new.official:
                kept["split"] = "random"
        content["data"][name] = {**kept, "corpus": new.name}
        on_it = [one for one in content.get("settings", {}).values() if one.get("data") == name]
        for teacher in content.get("teachers", {}).values():
            if teacher.get("data", FOLD) == (FOLD if on_it else name):
                on_it.append(teacher)
        for entry in on_it:
            for key in {*_SHARED, "folds"} & set(entry):
                entry[key] = ":".join(map(label, entry[key].split(":")))
            if "against" in entry and entry["task"] == entry["against"]:
                entry["against"] = next(one for one in new.labels if one != entry["task"])
    return used


_MADE: dict[type, Callable[..., Any]] = {
    cls: cls for cls in (Arm, Claim, Setting, Study, Teacher, Training)
}


def _made(cls: type, content: Mapping[str, Any], where: str) -> Any:  # noqa: ANN401
    """Make a dataclass from a table whose keys are the fields."""
    hints = get_type_hints(cls)
    known = {each.name: each for each in fields(cls)}
    at = f"{where}." if where else ""
    for key in content:
        if key not in known:
            raise InputError(f"{at}{key}: is unknown; wanted {', '.join(known)}")
    for key, each in known.items():
        needed = each.default is MISSING and each.default_factory is MISSING
        if needed and key not in content:
            raise InputError(f"{at}{key}: is missing")
    values = {key: _value(value, hints[key], f"{at}{key}") for key, value in content.items()}
    try:
        return _MADE[cls](**values)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def _value(value: Any, hint: Any, where: str) -> Any:  # noqa: ANN401
    """Check a value against the type of its field, and make tuples and dataclasses."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return _made(hint, _table(value, where), where)
    if origin in (Union, types.UnionType) and type(value) not in args:
        return _value(value, next(arg for arg in args if arg is not type(None)), where)
    if origin in (Union, types.UnionType):
        return value
    if origin is Literal:
        if value not in args:
            raise InputError(f"{where}: is {value!r}; wanted {', '.join(args)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: is {value!r}; wanted a list")
        return tuple(_value(each, args[0], f"{where}[{i}]") for i, each in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        table = _table(value, where)
        return {key: _value(each, args[1], f"{where}.{key}") for key, each in table.items()}
    wanted = {int: "a whole number", float: "a number", str: "text"}
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise InputError(f"{where}: is {value!r}; wanted {wanted.get(hint, hint)}")
    return value
