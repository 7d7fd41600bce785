"""--config and --print-config: the options of a command as TOML."""

import difflib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cloup
from click.core import ParameterSource

from compressor.cli.types import PATH
from compressor.errors import InputError

NOT_IN_FILES = ("config", "print_config", "help", "help_all", "version")
PRESET, CONFIG = "compressor.cli: values of --preset", "compressor.cli: values of --config"  # keys of click's meta
# One of these replaces whichever of them a file gives.
ALTERNATIVES = ("gamma", "gammas", "target_ratio", "target_bytes", "target_macs", "target_latency_ms", "max_drop")


@dataclass(frozen=True)
class GivenValue:
    """A value of a file: as the command line would give it, and whether it differs from the option's own default."""

    typed: Any
    differs: bool


def read_options(ctx: click.Context, path: Path) -> dict[str, GivenValue]:
    """The values of a TOML file with options of the command, by the names of their parameters.

    Raises:
        click.UsageError: no such file, or something in it that the command does not take.
    """
    parameters = _parameters(ctx)
    values: dict[str, GivenValue] = {}
    for key, value in _load(ctx, path).items():
        name = key.lstrip("-").replace("_", "-")
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1, cutoff=0)
            raise click.UsageError(f"{path}: there is no option {key!r}: did you mean {near[0]!r}?")
        parameter = parameters[name]
        if parameter.name in values:
            raise click.UsageError(f"{path} has {name!r} twice, with - and with _")
        try:
            as_typed = _as_typed(parameter, value)
            converted = parameter.type_cast_value(ctx, as_typed)
        except click.BadParameter as error:
            raise click.UsageError(f"{path}: {key}: {error.message}") from error
        values[str(parameter.name)] = GivenValue(as_typed, converted != own_default(ctx, parameter))
    return values


def set_defaults(ctx: click.Context, source: str, values: dict[str, GivenValue]) -> None:
    """Make values defaults, those of --config above those of --preset; what an option has by itself is not given.

    Args:
        ctx: of the command.
        source: PRESET or CONFIG.
        values: by the names of parameters.
    """
    ctx.meta[source] = values
    all_values = {**ctx.meta.get(PRESET, {}), **ctx.meta.get(CONFIG, {})}
    ctx.default_map = {name: value.typed for name, value in all_values.items() if value.differs}


def is_given(name: str) -> bool:
    """Whether the option with this parameter name was typed or stands in --config.

    What a preset says, or is left at its default, is not given.
    """
    ctx = click.get_current_context()
    source = ctx.get_parameter_source(name)
    if source is ParameterSource.DEFAULT_MAP:
        return name in ctx.meta.get(CONFIG, {}) or name not in ctx.meta.get(PRESET, {})
    return source is ParameterSource.COMMANDLINE


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Make the file's values defaults."""
    if path is not None and not ctx.resilient_parsing:
        set_defaults(ctx, CONFIG, read_options(ctx, path))
    return path


config_options = cloup.option_group(
    "Configuration",
    cloup.option(
        "--config",
        type=PATH,
        is_eager=True,
        callback=_read_config,
        help="TOML file with options under their names, such as `max-drop = 1`. What is typed wins over the file.",
    ),
    cloup.option(
        "--print-config",
        is_flag=True,
        is_eager=True,
        help="Print all options as they would be used, as a file for --config, and exit.",
    ),
)


def require_unless_printing(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback of an argument that --print-config can do without.

    Args:
        ctx: tells whether --print-config was given.
        param: the argument.
        value: what was given for it, which is returned.

    Raises:
        click.MissingParameter: nothing was given, and it is needed.
    """
    if value is None and not ctx.params.get("print_config") and not ctx.resilient_parsing:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


def without_replaced(options: dict[str, Any]) -> dict[str, Any]:
    """The options without the gamma or target of a file where another one is typed; likewise resume and overwrite."""
    ctx, replaced = click.get_current_context(), dict[str, Any]()
    for names, nothing in ((ALTERNATIVES, None), (("resume", "overwrite"), False)):
        sources = {name: ctx.get_parameter_source(name) for name in names}
        if ParameterSource.COMMANDLINE in sources.values():
            replaced |= {name: nothing for name, source in sources.items() if source is ParameterSource.DEFAULT_MAP}
    return {**options, **replaced}


def config_text(options: dict[str, Any]) -> str:
    """The options as TOML, in their groups; what is left out stands there as a comment."""
    ctx = click.get_current_context()
    parameters = _parameters(ctx)
    groups = {str(option.name): group.title for group in ctx.command.option_groups for option in group.options}  # type: ignore[attr-defined]
    lines = [f"# {ctx.command_path} --config FILE"]
    title = None
    for name, parameter in parameters.items():
        if groups.get(str(parameter.name)) != title:
            title = groups.get(str(parameter.name))
            lines += ["", f"# {title or 'Others'}"]
        value = _spell(parameter.type, options[str(parameter.name)])
        lines.append(f"# {name} =" if value is None else f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines)


def typed_options(leave_out: Sequence[str]) -> list[str]:
    """The options that were typed or stand in --config, as arguments of a command that has the same.

    A preset is among them, its values are not.

    Args:
        leave_out: names of parameters that are not among them.
    """
    ctx = click.get_current_context()
    arguments: list[str] = []
    for parameter in ctx.command.params:
        name = str(parameter.name)
        given = is_given(name) or name in ctx.meta.get(CONFIG, {}).keys() & ctx.meta.get(PRESET, {}).keys()
        if given and name not in leave_out and isinstance(parameter, click.Option):
            arguments += _as_arguments(parameter, ctx.params[name])
    return arguments


def preset_words(options: dict[str, Any]) -> str:
    """What the preset stands for in this run, as a person would type it; empty without one."""
    ctx = click.get_current_context()
    of_preset = [name for name in ctx.meta.get(PRESET, {}) if not is_given(name)]
    named = [row for row in ctx.command.params if row.name in of_preset and isinstance(row, click.Option)]
    return shlex.join(word for option in named for word in _as_arguments(option, options[str(option.name)]))


def _as_arguments(option: click.Option, value: Any) -> list[str]:
    """An option with its value as a person would type it."""
    longest = max(option.opts, key=len)
    if option.is_flag:
        return [longest] if value else option.secondary_opts[-1:]
    items = value if option.multiple else [value]
    return [word for item in items for word in (longest, _in_words(_spell(option.type, item)))]


def _in_words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _parameters(ctx: click.Context) -> dict[str, click.Parameter]:
    """What a file may hold: options by the names that people type, without dashes, and arguments."""
    return {
        max(parameter.opts, key=len).lstrip("-"): parameter
        for parameter in ctx.command.params
        if parameter.name not in NOT_IN_FILES
    }


def _load(ctx: click.Context, path: Path) -> dict[str, Any]:
    from compressor.files import read_toml

    try:
        return read_toml(path, "configuration")
    except InputError as error:
        raise click.UsageError(str(error)) from error


def _as_typed(parameter: click.Parameter, value: Any) -> Any:
    """A value of a file as the command line gives it to the option: text, a list of texts, or a flag's bool.

    Raises:
        click.BadParameter: no option takes such a value.
    """
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise click.BadParameter(f"{value!r} is neither true nor false")
        return value
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool | dict | list) for item in items):
        raise click.BadParameter(f"{value!r} is neither a text nor a number, nor a list of them")
    texts = [str(item) for item in items]
    return texts if parameter.nargs == -1 or getattr(parameter, "multiple", False) else ",".join(texts)


def own_default(ctx: click.Context, parameter: click.Parameter) -> Any:
    """What an option is where nothing gives it: neither a person, nor a file or a preset."""
    default = parameter.default
    if isinstance(default, str | int | float | list | tuple):  # click has a sentinel for what has no default
        return parameter.type_cast_value(ctx, default)
    return () if getattr(parameter, "multiple", False) else None


def _spell(kind: click.ParamType, value: Any) -> Any:
    """A converted value as TOML can hold it and the option reads it; None if it has none."""
    value = kind.spell(value) if hasattr(kind, "spell") else value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return list(_flatten(value))
    return value


def _flatten(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flatten(value)
        else:
            yield value
