"""`deltalens demo`: models made on the spot, and commands on them."""

from __future__ import annotations

from typing import Any

from deltalens.api.demos import build_demo
from deltalens.api.steps import DemoWatch, Step
from deltalens.cli import console
from deltalens.cli.generate import Command, Terminal
from deltalens.cli.reproduce import run_recipes
from deltalens.cli.running import framed
from deltalens.cli.steps import DemoTraining, run_step

__all__ = ["DEMO"]


def _run(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Make the demo; each step is shown as it would be typed, and run as that command."""
    with framed(command, terminal, typed):
        if typed.get("all"):
            run_recipes(command, terminal, typed)
            return
        console.quieten(terminal.verbose)
        training = DemoTraining(terminal.quiet or terminal.as_json)
        inner = Terminal(quiet=terminal.quiet or terminal.as_json, debug=terminal.debug)

        def take(step: Step) -> Any:
            training.end()
            run_step(step, inner)
            for picture in step.pictures():
                if not inner.quiet and picture.suffix in (".png", ".md"):
                    console.say(f"picture: {picture}")

        with training:
            found = command.call(typed, watch=DemoWatch(train=training.report, step=take))
        if terminal.as_json:
            console.print_json({"folders": [*found]})
        elif not terminal.quiet:
            out = typed.get("out") or command.parameters["out"].default
            console.say(f"models and rows to try other commands on: {out}")


DEMO = Command(
    name="demo",
    function=build_demo,
    run=_run,
    examples=("deltalens demo -o deltalens-demo/", "deltalens demo gmt -o deltalens-demo/"),
    interrupted="stopped; what is finished is kept, and the same command goes on",
)
