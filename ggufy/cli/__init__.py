"""The command line. This module only knows the commands' names; each is loaded when it is called."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module

import click

from ggufy.system.progress import show_progress
from ggufy.system.version import __version__

# name -> what it does; the command is the function `command` in ggufy.cli.<name>
COMMANDS = {
    "demo": "Train, export and question a tiny model on this CPU.",
    "doctor": "Check what works on this machine, and how to fix the rest.",
    "recipes": "List, show, copy and check recipes.",
    "plan": "Show what a recipe needs, before anything runs.",
    "data": "Show a recipe's data: lengths, truncation, what is trained on.",
    "train": "Train a recipe's adapter, or continue where it stopped.",
    "sweep": "Train a recipe with different values, and compare them.",
    "runs": "List, show and compare runs.",
    "export": "Export a trained run to GGUF files.",
    "verify": "Check the files of a run or a folder of exports, or one GGUF.",
    "eval": "Measure whether a run beats its base, and the cost of its quants.",
    "chat": "Talk to a GGUF file or a run.",
    "serve": "Serve a GGUF file or a run through an OpenAI-compatible API.",
    "ui": "Talk to a GGUF file or a run in the browser.",
    "push": "Push a run to the Hugging Face Hub.",
    "pull": "Pull a run from the Hub.",
    "space": "Write a Gradio Space for a pushed run.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        del ctx
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"ggufy.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            if close := difflib.get_close_matches(args[0], COMMANDS, 1):
                raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error happened.")
@click.version_option(__version__, prog_name="ggufy")
def main(debug: bool) -> None:
    """Fine-tune a small language model and get a GGUF that behaves like the model that was trained.

    Start with `ggufy demo`.
    """
    from ggufy.system import keys

    del debug
    keys.load()


def entry() -> None:
    """Run the command line and exit: 0; 1 with one line and a hint; 2 for wrong usage; 130 when interrupted."""
    # A vocabulary is a million small objects; at Python's own threshold half of the time to read one goes into looking
    # for garbage among them.
    gc.set_threshold(200_000, 10, 10)
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    show_progress()
    try:
        code = main.main(args=arguments, prog_name="ggufy", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt, click.Abort) as error:
        if "--debug" in arguments:
            raise
        return _show(KeyboardInterrupt() if isinstance(error, click.Abort) else error)
    return code if isinstance(code, int) else 0


def _show(error: BaseException) -> int:
    from ggufy.errors import Interrupted, from_lower

    shown = from_lower(error)
    click.echo(f"{'' if isinstance(shown, Interrupted) else 'error: '}{shown.message}", err=True)
    if shown.hint:
        click.echo(f"hint: {shown.hint}", err=True)
    return shown.code if isinstance(shown, Interrupted) else 1
