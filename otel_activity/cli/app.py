"""The command group: loads a subcommand only when it is used, turns errors into one line and a status.

Exit status of every command: 0 done; 1 a check failed, or the store cannot be reached or refuses;
2 wrong usage or configuration; 130 stopped by Ctrl-C. A reader that goes away (``| head``) ends it with 0.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from typing import Any, Final

import click

from otel_activity import __version__
from otel_activity.errors import ActivityError, ConfigurationError

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_USAGE", "LazyGroup", "cli", "main"]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("otel_activity.cli.demo:demo", "Run the example application, audited, and watch its events."),
    "doctor": ("otel_activity.cli.doctor:doctor", "Check the installation, the settings and the store."),
    "schema": ("otel_activity.cli.schema:schema", "Create, upgrade and inspect the store's tables."),
    "relay": ("otel_activity.cli.relay:relay", "Deliver what dead processes left in journals or an outbox."),
    "search": ("otel_activity.cli.search:search", "Find events, newest first."),
    "history": ("otel_activity.cli.history:history", "Show what happened to one entity."),
    "export": ("otel_activity.cli.export:export", "Write every event that matches, for a file."),
    "receive": ("otel_activity.cli.receive:receive", "Receive events as OTLP, and store them."),
    "tail": ("otel_activity.cli.tail:tail", "Show the newest events and follow new ones."),
}
"""Name -> (module:attribute, one line for ``--help``), so that ``--help`` imports none of them."""
_EXTRAS: Final = dict.fromkeys(("prometheus_client", "uvicorn"), ("receiver", "what the receiver needs"))
"""Module -> the extra that brings it, and what that is; every other module is looked for by the driver."""
_HELP: Final[type[Exception] | tuple[()]] = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What a call without a command raises, for its help to be printed; click before 8.2 prints it by itself."""


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are called, not when help is printed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; `None` if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a name that is none says which one may be meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that we raise on purpose becomes one line and an exit status."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:  # closed by who started us (`>&-`): click then writes nowhere
                sys.stdout.flush()
            return result
        except ActivityError as error:
            raise _reported(error) from error
        except _HELP:
            raise
        except click.UsageError as error:
            error.ctx = None  # one line; --help has the usage
            raise
        except ImportError as error:
            raise _not_installed(error) from error
        except BrokenPipeError:
            _forget_stdout()
            ctx.exit(0)
        except OSError as error:  # a full disk under the output, first of all
            _forget_stdout()
            raise click.ClickException(_said(error)) from error
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


class _Misconfigured(click.ClickException):
    exit_code = EXIT_USAGE


def _reported(error: ActivityError) -> click.ClickException:
    kind = _Misconfigured if isinstance(error, ConfigurationError) else click.ClickException
    return kind(" ".join(str(error).split()))


def _not_installed(error: ImportError) -> click.ClickException:
    """What to install, instead of a traceback: an extra's package, or psycopg's libpq."""
    reason = " ".join(str(error).split())
    module = (error.name or "").partition(".")[0]
    extra, brings = _EXTRAS.get(module, ("binary", "the PostgreSQL driver"))
    return _Misconfigured(f'{reason}; pip install "otel-activity[{extra}]" brings {brings}')


def _said(error: OSError) -> str:
    """What the system says, and about which file."""
    reason = error.strerror or " ".join(str(error).split())
    return reason if error.filename is None else f"{error.filename!r}: {reason}"


def _forget_stdout() -> None:
    """Send what is still buffered nowhere; the interpreter's last flush would print an error."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # a stdout without a file behind it has nothing to flush
        return


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command takes --help. `otel-activity doctor --settings` lists the settings.",
)
@click.version_option(__version__, "-V", "--version", message="otel-activity %(version)s")
def cli() -> None:
    """The audit trail of your service: set it up, check it, read it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run ``otel-activity``; ends the process with the exit status."""
    cli(prog_name="otel-activity")
