"""Commands made of functions: a function's parameters become arguments and options."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from deltalens.api.described import Arg, Opt, Parameter, parameters_of
from deltalens.api.options import Files
from deltalens.cli import console
from deltalens.cli.options_file import options_file_option
from deltalens.errors import DeltaLensError, Lines

__all__ = ["Command", "Terminal", "command_of", "setting_parameters"]


def is_first(parameter: Parameter) -> bool:
    """Whether a parameter stands at the top of the help."""
    return isinstance(parameter.said, Arg) or parameter.required


@dataclass(frozen=True)
class Terminal:
    """How a command talks to who typed it."""

    as_json: bool = False
    quiet: bool = False
    debug: bool = False
    verbose: bool = False
    dry_run: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options of the command line alone, by name."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A function on the command line."""

    name: str
    function: Callable[..., Any]
    run: Callable[[Command, Terminal, dict[str, Any]], None]
    """Calls the function, and shows what it returns."""
    examples: Sequence[str]
    interrupted: str = "stopped; nothing was written"
    """What Ctrl-C leaves; `{out}` stands for the folder."""
    about: str = ""
    """The help's first lines; those of the function if empty."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are not typed."""
    more: Mapping[str, Parameter] = field(default_factory=dict)
    """Options that the function takes by name in one argument: a method's settings."""
    more_as: str = ""
    """That argument."""
    extra: Sequence[inspect.Parameter] = ()
    """Options of the command line alone, as typer takes them."""
    quiets: bool = True
    """Whether it has --quiet and progress."""
    plans: bool = False
    """Whether it has --dry-run."""

    @property
    def heavy(self) -> bool:
        """Whether it loads models, and so libraries that talk."""
        return self.plans

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What can be typed, by name: arguments, then a method's own options, then the rest."""
        own = {
            name: each
            for name, each in parameters_of(self.function).items()
            if name not in self.fixed and not getattr(each.said, "python_only", False)
        }
        first = {name: each for name, each in own.items() if is_first(each)}
        return {**first, **self.more, **own}

    def call(self, typed: Mapping[str, Any], **more: Any) -> Any:
        """Call the function.

        Args:
            typed: by name; None where nothing was typed. Those that are fixed are passed over.
            more: what is not typed: who is told of progress.

        Returns:
            What the function returns.
        """
        given = {name: value for name, value in typed.items() if value is not None}
        own = {name: value for name, value in given.items() if name in self.more}
        rest = {name: value for name, value in given.items() if name not in own}
        settings = {self.more_as: own} if self.more_as else {}
        return self.function(**{**rest, **self.fixed}, **settings, **more)


class _HelpInParts(TyperCommand):
    """`--help` is one screen: what the command does, and its commonest options; `--help-all` is
    everything."""

    whole = ""
    """The text of `--help-all`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The arguments' names, as they are in the help."""
        return ["[OPTIONS]", *(str(each.metavar) for each in self.params if _is_argument(each))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, options that have to be given, and the others, each in a line if it fits."""
        shown = [each for each in self.get_params(ctx) if not getattr(each, "hidden", False)]
        for title, records in (
            ("Arguments", [_argument(each) for each in shown if _is_argument(each)]),
            ("Options", [_option(each) for each in shown if not _is_argument(each)]),
        ):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=28)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """How many options are not shown."""
        hidden = sum(getattr(each, "hidden", False) for each in self.params)
        if hidden:
            formatter.write_paragraph()
            formatter.write_text(f"{hidden} more options: --help-all")


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _argument(parameter: Any) -> tuple[str, str]:
    return parameter.metavar, parameter.help or ""


def _option(parameter: Any) -> tuple[str, str]:
    flags = ", ".join(parameter.opts)
    if parameter.secondary_opts:
        flags += f"/{parameter.secondary_opts[0]}"
    value = "" if parameter.is_flag or not parameter.metavar else f" {parameter.metavar}"
    required = " (required)" if parameter.required else ""
    return flags + value, f"{parameter.help or ''}{required}"


def command_of(command: Command) -> TyperCommand:
    """What the command line runs.

    Args:
        command: the function, and how it is shown.

    Returns:
        A command for a group.
    """
    parameters = command.parameters
    signature = [_typed(each) for each in parameters.values()]
    signature += [*command.extra, *_own_options(command)]
    signature.sort(key=lambda each: each.default is not inspect.Parameter.empty)
    ours = {name for name, _ in _TERMINAL}
    alone = [each.name for each in command.extra]

    def run(**typed: Any) -> None:
        terminal = Terminal(
            **{name: typed[name] for name in ours & {*typed}},
            extra={name: typed[name] for name in alone},
        )
        given = {name: _typed_value(each, typed[name]) for name, each in parameters.items()}
        command.run(command, terminal, given)

    run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in signature}
    run.__doc__ = _help(command, _about(command).partition("\n\n")[0])
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(
        command.name,
        cls=_HelpInParts,
        context_settings={"help_option_names": ["-h", "--help"]},
    )(run)
    made: Any = typer.main.get_command(app)
    made.whole = _help(command, _about(command))
    return cast(TyperCommand, made)


def _typed_value(parameter: Parameter, value: Any) -> Any:
    """What was typed; None where nothing was, and the function's default counts.

    Raises:
        DeltaLensError: a number below the least.
    """
    least = getattr(parameter.said, "minimum", None)
    if least is not None and value is not None and value < least:
        raise DeltaLensError(f"{parameter.name} {value}: at least {least}")
    return None if value == [] or value == parameter.default else value


def _about(command: Command) -> str:
    """What the function does, without its sections."""
    text = command.about or inspect.getdoc(command.function) or ""
    for section in ("Args:", "Options:", "Returns:"):
        text = text.partition(f"\n{section}")[0]
    return text.strip()


def _help(command: Command, about: str) -> str:
    title = "Examples" if len(command.examples) > 1 else "Example"
    return f"{about}\n\n\b\n{title}:\n" + "\n".join(command.examples)


def _typed(parameter: Parameter) -> inspect.Parameter:
    """A parameter of the function as typer takes it."""
    said, required = parameter.said, parameter.required
    kind: Any = _on_the_command_line(parameter.kind)
    if isinstance(said, Arg):
        info: Any = typer.Argument(metavar=said.metavar, help=said.about)
        kind = list[str] if said.repeat else str
    else:
        flag = f"--{parameter.name.replace('_', '-')}"
        if kind is bool and parameter.default is True:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        shown = parameter.default not in (None, (), False) and not required
        info = typer.Option(
            *said.flags,
            flag,
            metavar=said.metavar or _METAVARS.get(kind) or parameter.name.split("_")[-1].upper(),
            help=_one_line(said.about, parameter.default if shown else None),
            hidden=not (said.common or required),
            show_default=False,
        )
    default: Any = inspect.Parameter.empty if required else None
    if kind is bool:
        default = bool(parameter.default)
    elif not required:
        kind = kind | None
    return inspect.Parameter(
        parameter.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, info],
        default=default,
    )


_METAVARS: Mapping[Any, str | None] = {int: "N", float: "X", bool: None}


def _one_line(about: str, default: Any) -> str:
    if default is None:
        return about
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{about.removesuffix('.')} ({text})."


def _on_the_command_line(kind: Any) -> Any:
    """The type of what is typed: flags and numbers as they are, files as a list, all else text."""
    if kind == Files:
        return list[str]
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    origins = {get_origin(part) or part for part in parts} - {type(None)}
    if Mapping in origins:
        return list[str]
    for plain in (bool, int, float):
        if origins == {plain}:
            return plain
    return str


_TERMINAL: Sequence[tuple[str, Any]] = (
    ("dry_run", typer.Option("--dry-run", help="Show what would run, and what it takes.")),
    ("as_json", typer.Option("--json", help="Print one JSON object, errors too.")),
    ("quiet", typer.Option("-q", "--quiet", help="No progress and no summary.")),
    ("verbose", typer.Option("-v", "--verbose", help="Log what the libraries do.", hidden=True)),
    ("debug", typer.Option("--debug", help="Show the traceback of an error.", hidden=True)),
)


def _own_options(command: Command) -> Sequence[inspect.Parameter]:
    left_out = {
        *(() if command.plans else ("dry_run",)),
        *(() if command.quiets else ("quiet",)),
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(name, keyword, annotation=Annotated[bool, info], default=False)
        for name, info in _TERMINAL
        if name not in left_out
    ]
    file = Annotated[str | None, options_file_option()]
    all_of_it = Annotated[
        bool,
        typer.Option("--help-all", help="Show all options.", is_eager=True, callback=_show_all),
    ]
    return [
        *options,
        inspect.Parameter("options_file", keyword, annotation=file, default=None),
        inspect.Parameter("help_all", keyword, annotation=all_of_it, default=False),
    ]


def _show_all(context: typer.Context, wanted: bool) -> None:
    if not wanted:
        return
    command: Any = context.command
    for parameter in command.params:
        parameter.hidden = False
    command.help = command.whole
    console.say(Lines(*context.get_help().split("\n")))
    raise typer.Exit


def setting_parameters(method: type[Any]) -> dict[str, Parameter]:
    """A method's settings as options.

    Args:
        method: its class.

    Returns:
        Name -> parameter; all of them are common.
    """
    hints = get_type_hints(method)
    found = {}
    for name, each in method.own_settings().items():
        about = each.metadata.get("about", "")
        flag = each.metadata.get("flag", "")
        said = Opt(
            about or f"The method's {name.replace('_', ' ')}.",
            metavar=each.metadata.get("metavar"),
            flags=(flag,) if flag else (),
            common=True,
        )
        found[name] = Parameter(name, hints[name], said, None)
    return found
