"""What all commands share: parsing, errors in words, exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from airi.errors import AiriError, ConfigError

Parser = argparse.ArgumentParser
Command = Callable[[argparse.Namespace], int]


class NoError(AiriError):
    """The answer is no; the message says why (exit code 1)."""

    status = 400
    code = "answer_is_no"


class UsageError(NoError):
    """The command cannot be understood (exit code 2)."""

    code = "usage"


def command(name: str, summary: str, example: str, run: Command | None = None) -> Parser:
    """Return the parser of a command; ``run`` gets the parsed arguments and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"airi {name}",
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if run is not None:
        _finish(parser, run)
    return parser


def group(name: str, summary: str, parts: Sequence[Parser]) -> Parser:
    """Return the parser of a command with subcommands (``airi key create``)."""
    words = [part.prog.removeprefix(f"airi {name} ") for part in parts]
    parser = command(name, summary, parts[0].epilog.partition("\n  ")[2] if parts[0].epilog else "")
    places = parser.add_subparsers(dest="subcommand", metavar="|".join(words), required=True)
    for word, part in zip(words, parts, strict=True):
        places.add_parser(
            word,
            parents=[part],
            add_help=False,
            description=part.description,
            epilog=part.epilog,
            help=part.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            conflict_handler="resolve",
            allow_abbrev=False,
        ).set_defaults(execute=part.get_default("execute"))
    return parser


def _finish(parser: Parser, run: Command) -> None:
    parser.add_argument(
        "--output", choices=("text", "json"), default="text", help="how to print the result (default: text)"
    )
    parser.set_defaults(execute=run)


def run(build: Callable[[], Parser], words: Sequence[str]) -> int:
    """Parse ``words`` (the first is the command's name) and run; turn what goes wrong into a sentence and a 1."""
    try:
        arguments = build().parse_args(words[1:])
    except SystemExit as end:  # argparse has printed the help or what it did not understand
        return end.code if isinstance(end.code, int) else 2
    try:
        return int(arguments.execute(arguments))
    except ConfigError as error:
        sys.stderr.writelines(f"airi: {problem}\n" for problem in error.problems)
    except AiriError as error:
        sys.stderr.write(f"airi: {error.message}\n")
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # `airi … | head`
        sys.stderr.close()
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    return 1
