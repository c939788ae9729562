"""One way to configure every command: dataclasses, a YAML file, and the command line over it.

The YAML file is put in front of the command line as if it had been typed there. So a value in it is converted by the
same rules as a typed one (``2e-4`` is a float although YAML reads a string), it satisfies a required field, an unknown
key is refused, and what is really typed wins.

This is the only module that knows the argument parser.
"""

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from llava_ial.errors import UserError


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and says the default of what has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.const, bool) and action.option_strings[0].startswith("--no_"):
            return f"the same as --{action.dest} false"
        return action.help if action.required or action.default is None else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """An argument parser whose complaints are one-line ``UserError``s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def parse_config(
    *config_types: type, description: str, argv: Sequence[str] | None = None, config_file: Path | None = None
) -> tuple[Any, ...]:
    """Reads ``--config FILE.yaml`` and the command line into one instance of each dataclass.

    Args:
        config_types: Dataclasses whose fields are the options; ``metadata={"help": ...}`` is shown by ``--help``.
        description: First lines of ``--help``: what the command does and how it is launched.
        argv: Arguments without the program's name; ``sys.argv[1:]`` if None.
        config_file: Used when ``--config`` is not given.

    Raises:
        UserError: Unknown key, missing required field, unreadable file, value of a wrong type.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        list(config_types),
        prog=_program(),
        description=description,
        allow_abbrev=False,
        formatter_class=_Help,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="settings; options on the command line win over it")
    front = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    front.add_argument("--config", type=Path)
    named = front.parse_known_args(arguments)[0].config or config_file
    if named is not None and not {"-h", "--help"} & set(arguments):
        known = {field.name for config_type in config_types for field in dataclasses.fields(config_type) if field.init}
        arguments = [*_as_arguments(load_yaml(named), known, named), *arguments]
    *parsed, unused = parser.parse_args_into_dataclasses(
        args=arguments, look_for_args_file=False, return_remaining_strings=True
    )
    if unused:
        near = difflib.get_close_matches(unused[0].partition("=")[0], parser._option_string_actions, n=1)
        mend = f"did you mean {near[0]}?" if near else "see --help"
        raise UserError(f"unknown option {' '.join(unused)} ({mend})")
    return tuple(parsed[: len(config_types)])


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"--config {path}: expected 'key: value' lines, found a {type(loaded).__name__}")
    return {str(key): value for key, value in loaded.items()}


def save_config(path: Path, *configs: Any) -> None:
    """Writes the resolved configuration as YAML that ``--config`` accepts again."""
    merged: dict[str, Any] = {}
    for config in configs:
        values = config if isinstance(config, Mapping) else dataclasses.asdict(config)
        merged.update({k: v for k, v in values.items() if v is not None})
    path.write_text(yaml.safe_dump(_plain(merged), sort_keys=True, allow_unicode=True), encoding="utf-8")


def _program() -> str:
    """How this command was started, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]


def _plain(value: Any) -> Any:
    """Paths, tuples and enumerations as what YAML knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    return str(value)


def _as_arguments(settings: Mapping[str, Any], known: set[str], path: Path) -> list[str]:
    arguments: list[str] = []
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            mend = f"did you mean '{near[0]}'?" if near else "--help lists the keys"
            raise UserError(f"--config {path}: unknown key '{key}'; {mend}")
        if value is None or value == []:
            continue  # null, and nothing in a list, mean: leave the default
        if isinstance(value, list):
            arguments += [f"--{key}", *(str(item) for item in value)]
        elif isinstance(value, dict):
            arguments.append(f"--{key}={json.dumps(value)}")
        else:
            arguments.append(f"--{key}={value}")
    return arguments
