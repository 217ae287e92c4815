"""The command line's entry: finds the command, and turns every end it can come to into one plain message.

Nothing heavy is imported here: ``optc --help`` and completion answer at once, and a command's module is imported when
that command is called.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from click.shell_completion import shell_complete

from optc.ir.errors import OptcError, printable

_DEFAULT = "compile"
#: Commands: name -> (module of optc.tools that holds an object ``command``, one line on it). A new command is one row.
_COMMANDS = {
    "compile": ("compile", "Optimize a model. The default: optc MODEL is optc compile MODEL."),
    "run": ("run", "Run a model and show or save its outputs."),
    "bench": ("bench", "Time models against each other."),
    "inspect": ("inspect", "Show what a model is made of."),
    "diff": ("diff", "Show what differs between two models."),
    "explain": ("explain", "Show which rules fired, and why others did not."),
    "report": ("report", "Write a page that shows what a compile does and why."),
    "recover": ("recover", "Let a compressed model learn from its original."),
    "build": ("build", "Build the engine of a TensorRT bundle, on the GPU that it is for."),
    "bisect": ("bisect", "Find the rewrite that makes the result wrong."),
    "reduce": ("reduce", "Shrink a model that fails to a small one that fails still."),
    "replay": ("replay", "Run a failed compile again from its reproducer."),
    "passes": ("passes", "List the passes, or describe one."),
    "targets": ("targets", "List the targets, or describe one."),
    "backends": ("backends", "List the backends, and why one cannot be used here."),
    "plugins": ("plugins", "List the plugins that are installed."),
}
_EXIT_INTERNAL, _EXIT_INTERRUPTED, _EXIT_PIPE, _EXIT_TERMINATED = 70, 130, 141, 143


class _Terminated(BaseException):
    """SIGTERM; like KeyboardInterrupt, so that what is half-written is cleaned up on the way out."""


class _Commands(click.Group):
    """A group whose commands are imported when they are called, with a default command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"optc.tools.{_COMMANDS[name][0]}")
        command: click.Command = module.command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version", *_COMMANDS}
        if args and args[0] not in own and not ctx.resilient_parsing:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _print_version(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        versions = importlib.import_module("optc.machine").versions()
        click.echo(" ".join(f"{name} {version}" for name, version in {"optc": "?", **versions}.items()))
        ctx.exit()


@click.command(
    "optc",
    cls=_Commands,
    subcommand_metavar="MODEL [OPTIONS] | COMMAND [ARGS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Examples: 'optc model.onnx -O2', 'optc model.onnx -O3 --calib data.npz -o small.onnx', "
    "'optc bench small.onnx --against model.onnx'. All options of a compile: 'optc compile --help'.",
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Versions.")
def cli() -> None:
    """A compiler-style optimizer for ONNX models: right, fast, and it tells you why."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: What follows the program's name; those of the process by default.
    """
    if "_OPTC_COMPLETE" in os.environ:
        sys.exit(shell_complete(cli, {}, "optc", "_OPTC_COMPLETE", os.environ["_OPTC_COMPLETE"]))
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _terminate(number: int, frame: Any) -> NoReturn:
    raise _Terminated


def _run(arguments: list[str]) -> int:
    """Run a command line; every outcome becomes an exit code, and every failure one message on stderr."""
    verbose = not {"-v", "--verbose"}.isdisjoint(arguments)
    try:
        with cli.make_context("optc", arguments) as ctx:
            cli.invoke(ctx)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _fail(*_usage(error), error.exit_code, verbose)
    except OptcError as error:
        where = f"{error.where}: " if error.where else ""
        return _fail(f"{where}{error.what}", error.hint, error.exit_code, verbose)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", None, _EXIT_INTERRUPTED, verbose)
    except _Terminated:
        return _fail("terminated", None, _EXIT_TERMINATED, verbose)
    except BrokenPipeError:
        # Whoever read our output has gone; a second attempt to flush it at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_PIPE
    except MemoryError:
        return _fail("out of memory", "use a machine with more, or keep weights as external data", 1, verbose)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", None, 1, verbose)
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        notes = "; ".join(getattr(error, "__notes__", ()))
        hint = f"please report this; -v shows the traceback{'; ' + notes if notes else ''}"
        return _fail(text, hint, _EXIT_INTERNAL, verbose)


def _usage(error: click.ClickException) -> tuple[str, str | None]:
    ctx = getattr(error, "ctx", None)
    return error.format_message(), f"see {ctx.command_path} --help" if ctx is not None else None


def _fail(what: str, hint: str | None, code: int, verbose: bool) -> int:
    with contextlib.suppress(OSError):
        if verbose:
            traceback.print_exc()
        text = f"optc: error: {what}" + (f"\n  hint: {hint}" if hint else "")
        print(printable(text), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    main()
