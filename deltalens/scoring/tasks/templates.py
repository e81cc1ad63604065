"""Templates of a task, rendered once for each document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["render_once"]

_RENDERING = ("doc_to_text", "doc_to_target", "doc_to_choice")


def render_once(task: Any) -> None:
    """Let a task of the harness keep what its templates yield. The harness compiles a template anew
    for every document, each time that it builds a prompt or compares an answer: most of what it
    does beside the model. Functions are called as before: they may draw at random.

    Args:
        task: of the harness; changed in place.
    """
    for name in _RENDERING:
        template = getattr(task.config, name, None)
        # `random` is a filter of jinja.
        if isinstance(template, str) and "random" not in template:
            setattr(task, name, _remembered(getattr(task, name)))


def _remembered(render: Callable[..., Any]) -> Callable[..., Any]:
    memo: dict[str, Any] = {}

    def remembered(doc: Any, *others: Any, **named: Any) -> Any:
        if any(other is not None for other in (*others, *named.values())):
            return render(doc, *others, **named)
        key = repr(doc)
        if key not in memo:
            memo[key] = render(doc)
        rendered = memo[key]
        return [*rendered] if isinstance(rendered, list) else rendered

    return remembered
