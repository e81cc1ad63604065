"""A line for each command: how often it was killed, and what came of it."""

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = terminalreporter.stats.get("passed", [])
    lines = [text for one in reports for name, text in one.user_properties if name == "kills"]
    if lines:
        terminalreporter.section("kills")
        for line in sorted(lines):
            terminalreporter.write_line(line)
        total = sum(int(line.rpartition(": ")[2].split()[0]) for line in _kills(lines))
        terminalreporter.write_line(f"{total} kills in all")


def _kills(lines: list[str]) -> list[str]:
    return [line.partition(" kills")[0] for line in lines]
