"""The command line `likeness`, one module per verb. Importing it is cheap: typer is loaded when a command runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..errors import LikenessError

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Entry point of the script.

    Exit codes: 0 all is well, 1 something needs attention, 2 wrong usage, 130 stopped with Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the work
    try:
        command_tree()()
    except LikenessError as error:
        print(f"likeness: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # before typer listens, while modules are loaded
        sys.exit(130)


def command_tree() -> typer.Typer:
    """The command tree."""
    import typer

    from . import batch, calibrate, evaluate, identity, models, train
    from .edge import Verb, likeness

    app = typer.Typer(
        help="Identity-preserving portraits: what the ComfyUI pack needs around it.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # boxes break sentences
        add_completion=False,
    )
    app.add_typer(models.commands(), name="models", help="Model files: what is here, what is missing, get it.")
    app.add_typer(batch.commands(), name="batch", help=batch.HELP)
    for name, verb in {
        "identity": identity.identity,
        "evaluate": evaluate.evaluate_folder,
        "calibrate": calibrate.calibrate_judge,
        "train": train.train,
    }.items():
        app.command(name, cls=Verb)(verb)
    app.callback(help=app.info.help)(likeness)
    return app
