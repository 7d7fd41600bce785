"""How commands show help and refuse wrong usage: the terminal's width, the common options first, one sentence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import cloup

MAX_WIDTH = 200  # characters; help takes the terminal's width up to here, beyond which lines are hard to follow
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH}
ABOUT_HELP = ("--help", "--help-all", "--version")
SHOWS_ALL = "compressor.cli.help: all options"


class Refusal(click.ClickException):
    """Wrong usage as one sentence on stderr."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print the sentence as all other errors are printed."""
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


@contextmanager
def refuse_in_one_sentence() -> Iterator[None]:
    """Turn click's errors of usage, which take four lines, into a `Refusal`."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise  # shows the help
    except click.UsageError as error:
        sentence = " ".join(error.format_message().split()).rstrip(".")
        raise Refusal(sentence[:1].lower() + sentence[1:]) from error


class Command(cloup.Command):
    """A command whose --help shows examples and the common options; --help-all shows all options, in groups."""

    def __init__(
        self,
        *args: Any,
        common: Sequence[str] = (),
        examples: Sequence[tuple[str, str]] = (),
        params: Sequence[click.Parameter] = (),
        **kwargs: Any,
    ) -> None:
        """Beside click's arguments: names of common options in order, and examples, each a purpose and a command."""
        extra = [_help_all_option()] if common else []
        super().__init__(*args, **{"context_settings": SETTINGS, **kwargs, "params": [*params, *extra]})
        self._common = common
        self._examples = examples

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As click's, with one sentence for wrong usage."""
        with refuse_in_one_sentence():
            return super().make_context(*args, **kwargs)

    def format_params(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the common options or all of them."""
        if self._examples:
            formatter.write("\nExamples:\n")
            for purpose, command in self._examples:
                formatter.write(f"  {command}\n      {purpose}\n")
        if not self._common or ctx.meta.get(SHOWS_ALL):
            super().format_params(ctx, formatter)
            return
        options = {name: option for option in self.get_params(ctx) for name in option.opts}
        records = [options[name].get_help_record(ctx) for name in (*self._common, *ABOUT_HELP) if name in options]
        section = cloup.HelpSection("Common options", [record for record in records if record])
        formatter.write_many_sections([section])  # type: ignore[attr-defined]  # cloup's formatter


class Group(click.Group):
    """A group that refuses wrong usage of its commands in one sentence."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": SETTINGS, **kwargs})

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As click's, with one sentence for wrong usage."""
        with refuse_in_one_sentence():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's, with one sentence for a command that does not exist and for wrong usage of one that does."""
        with refuse_in_one_sentence():
            return super().invoke(ctx)


def _help_all_option() -> click.Option:
    def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ctx.meta[SHOWS_ALL] = True
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()

    about = "Show all options and exit."
    return cloup.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=show, help=about)
