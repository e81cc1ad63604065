"""`deltalens demo probe`: the demo's fine-tuning, watched by a gradient probe."""

from __future__ import annotations

from deltalens.cli import console
from deltalens.cli.demo import DEFAULT_FOLDER, Folder, interrupted, made, say
from deltalens.cli.monitor import monitor
from deltalens.cli.options import Debug, Quiet


def demo_probe(out: Folder = DEFAULT_FOLDER, quiet: Quiet = False, debug: Debug = False) -> None:
    """Fine-tune the demo's base with a gradient probe attached, then show what it logged.

    Takes about two minutes on two cores, downloads nothing, and trains the same model as without
    the probe, bit for bit. A second run starts at once.

    \b
    Example:
    deltalens demo probe -o deltalens-demo/
    """
    with console.command(debug, interrupted(out)):
        from deltalens.demo import build_probe_run

        trained = {"base": "base", "ft": "fine-tune, with the probe on"}
        run = made(build_probe_run, out, quiet, trained).probe_run
        say(quiet, _ASKED.format(run=run))
        monitor(run, quiet=quiet)


_ASKED = "\nWhat do the gradients of the fine-tuning look like?\n$ deltalens monitor {run}\n"
