"""The command line: one thin file per command. Nothing here imports torch before a command runs."""

import os
import sys

import typer

import glocal
from glocal.errors import GlocalError

# OpenMP's threads spin while they wait for each other. On cores shared with anything else that makes torch ten to fifty
# times slower; sleeping instead costs a quarter of the speed of small models on free ones.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def command_group(name: str, about: str) -> typer.Typer:
    """An empty group of commands."""
    return typer.Typer(
        name=name,
        help=about,
        no_args_is_help=True,
        rich_markup_mode=None,  # half the start-up time of `glocal --help`
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = command_group("glocal", "CNN, Transformer, or hybrid? Trains and evaluates vision backbones on your own images.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glocal {glocal.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    """CNN, Transformer, or hybrid? Trains and evaluates vision backbones on your own images."""


def main() -> None:
    """Entry point of the ``glocal`` script: a user's mistake is one message and exit code 2."""
    from glocal.cli import (  # noqa: F401  (each registers its command)
        analyze,
        bench,
        check,
        claims,
        compare,
        convert,
        detect,
        eval,
        export,
        models,
        predict,
        recommend,
        report,
        segment,
        train,
    )  # fmt: skip

    try:
        app()
    except GlocalError as error:
        typer.secho("Error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output went away: `glocal models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
