"""`--dry-run`: what a command would run, and what that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltalens.cli import console

if TYPE_CHECKING:
    from deltalens.cli.generate import Terminal
    from deltalens.scoring.planning import StudyPlan

__all__ = ["PlanOnly", "show_plan", "shown_bytes", "stop_at_plan"]


class PlanOnly(Exception):
    """Leaves a study where everything is checked and nothing has begun."""

    def __init__(self, plan: StudyPlan) -> None:
        super().__init__("dry run")
        self.plan = plan


def stop_at_plan(plan: StudyPlan) -> None:
    """Go no further than the plan.

    Args:
        plan: of the study.

    Raises:
        PlanOnly: always.
    """
    raise PlanOnly(plan)


def show_plan(plan: StudyPlan, terminal: Terminal) -> None:
    """Print what would run.

    Args:
        plan: of the study.
        terminal: how the command talks.
    """
    if terminal.as_json:
        console.print_json(plan.as_json())
        return
    jobs = f", {plan.jobs} at once" if plan.jobs > 1 else ""
    console.say(f"would run: {plan.count:,} {plan.what}{jobs}, on {plan.device}")
    console.say(f"reads:     {shown_bytes(plan.read_bytes)} of checkpoints")
    console.say(
        f"memory:    {shown_bytes(plan.memory_bytes)} for models, and activations beside them"
    )
    console.say(f"computes:  about {plan.tokens:,} tokens in each")
    console.say(f"takes:     about {_time(plan.seconds())}, half to twice that")
    console.say("nothing was written; without --dry-run it runs, and what is finished is kept")


def shown_bytes(count: float) -> str:
    """Write a number of bytes for people.

    Args:
        count: of bytes.

    Returns:
        `14.5 GB`.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit in ("B", "kB") else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _time(seconds: float) -> str:
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(1.0, seconds):,.0f} s"
