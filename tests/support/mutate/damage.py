"""Damage to bytes, lines and whole files, and to the structure of what is written in them.

Everything is drawn from one `random.Random`: the same seed does the same damage.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deltalens.io.checksum import sealed

__all__ = ["OUTSIDE", "Damage", "damage_sealed", "damaged", "remove", "replace_file"]

Draw = random.Random
Damage = Callable[[Draw, bytes, Sequence[bytes]], bytes]
"""From a file's content, and that of others of its kind, to another content."""

OUTSIDE = "outside.txt"
"""A file that nothing may write to, and no link may be followed to."""

DEEP, HUGE = "@deep@", "@huge@"
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 1 << 31, 1 << 63, 1 << 64, 10**400, -(1 << 63), 0.5, -1.5,
    1e308, -0.0, float("nan"), float("inf"), "", "x", "F32", "I8", "F64", "nan", "0.5", "1e999",
    "../x.safetensors", "/etc/passwd", "a\0b", "\ud800", "\udcff", "line\nbreak", "x" * 100_000,
    "\x1b]52;c;QQ==\x07", "[bold]", "$\\frac{1}{0}$", "=cmd|' /C calc'!A0", "2026-01-01",
    [], {}, [[]], [0], [0, 0], [0, 8], [-4, 4], [8, 0], [1 << 62, 1 << 62, 0], {"a": "b"},
    {"auto_map": {"AutoModelForCausalLM": "trap.Trap", "AutoTokenizer": ["trap.Trap", None]}},
    list(range(1000)), DEEP, HUGE,
]  # fmt: skip
NAMES = [odd for odd in ODD if isinstance(odd, str)] + ["auto_map", "checksum", "format", "value"]
PICKLE = b"cposix\nsystem\n(S'touch pwned'\ntR."
"""What runs a command if somebody loads it."""


def damage_bytes(draw: Draw, content: bytes, others: Sequence[bytes]) -> bytes:
    """Some bytes flipped, overwritten, cut out, doubled, added, swapped, spliced, or lost at the
    end; and seldom everything."""
    at, size = draw.randrange(len(content) + 1), 1 + int(draw.expovariate(0.1))
    piece = content[at : at + size]
    other = draw.choice(list(others) or [content])
    action = draw.random()
    if action < 0.12:
        return content[:at]
    if action < 0.15:
        return draw.choice([b"", bytes(len(content)), other, content * 2, b"\n", PICKLE])
    if action < 0.25:
        return content[:at] + other[min(at, len(other)) :]
    if action < 0.35:
        there = draw.randrange(len(content) + 1)
        low, high = sorted((at, there))
        block = content[high : high + size]
        middle = content[low + len(block) : high]
        return (
            content[:low]
            + block
            + middle
            + content[low : low + len(block)]
            + content[high + size :]
        )
    new = draw.choice(
        [
            bytes(byte ^ (1 << draw.randrange(8)) for byte in piece[:1]) + piece[1:],
            bytes(byte ^ (1 << draw.randrange(8)) for byte in piece[:3]) + piece[3:],
            draw.randbytes(1) + piece[1:],
            bytes(len(piece)),
            b"\xff" * len(piece),
            draw.randbytes(len(piece)),
            b"",
            piece + piece,
            draw.randbytes(size) + piece,
            draw.choice([b"\xc3\x28", b"\xed\xa0\x80", b"\xff\xfe", b"\xef\xbb\xbf", b"\0"])
            + piece,
        ]
    )
    return content[:at] + new + content[at + len(piece) :]


def damage_json(draw: Draw, value: Any) -> str:
    """Some places of a JSON value with another value, another name, lost or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        _damage_value(draw, value)
    if draw.random() < 0.03:
        value = draw.choice(ODD)
    text = json.dumps(value)
    if draw.random() < 0.1:
        text = _double_key(draw, text)
    return text.replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000).replace(f'"{HUGE}"', "9" * 5_000)


def _damage_value(draw: Draw, value: Any) -> None:
    if not isinstance(value, (dict, list)):
        return
    holder = value
    while True:
        keys: list[Any] = list(holder if isinstance(holder, dict) else range(len(holder)))
        if not keys:
            return
        key = draw.choice(keys)
        deeper = isinstance(holder[key], (dict, list))
        if not deeper or not holder[key] or draw.random() < 0.2:
            break
        holder = holder[key]
    action = draw.random()
    if action < 0.5:
        holder[key] = copy.deepcopy(draw.choice(ODD))
    elif action < 0.6:
        holder[key] = copy.deepcopy(holder[draw.choice(keys)])
    elif action < 0.75:
        del holder[key]
    elif isinstance(holder, dict):
        name = draw.choice([*NAMES, *keys])
        holder[name] = holder.pop(key) if action < 0.9 else copy.deepcopy(holder[key])
    elif isinstance(holder[key], (int, float)):
        holder[key] += draw.choice([-4, -1, 1, 4, 1 << 40])
    else:
        draw.shuffle(holder)


def _double_key(draw: Draw, text: str) -> str:
    """One key twice in the same object, the second time with a value of its own."""
    keys = list(re.finditer(r'"[^"\\]*": ', text))
    if not keys:
        return text
    key = draw.choice(keys)
    odd = json.dumps(draw.choice(ODD))
    return f"{text[: key.start()]}{key.group()}{odd}, {text[key.start() :]}"


def damage_document(draw: Draw, content: bytes, others: Sequence[bytes]) -> bytes:
    """One JSON value: its bytes, or what it says."""
    if draw.random() < 0.3:
        return damage_bytes(draw, content, others)
    return damage_json(draw, json.loads(content)).encode()


def damage_lines(draw: Draw, content: bytes, others: Sequence[bytes]) -> bytes:
    """Lines of JSON or of a table: bytes, one line's JSON or fields, or the lines themselves."""
    action = draw.random()
    if action < 0.25 or not content:
        return damage_bytes(draw, content, others)
    lines = content.splitlines()
    place = draw.randrange(len(lines))
    if action < 0.6:
        lines[place] = _damage_line(draw, lines[place])
    elif action < 0.68:
        del lines[place]
    elif action < 0.76:
        lines.insert(draw.randrange(len(lines) + 1), lines[place])
    elif action < 0.84:
        draw.shuffle(lines)
    elif action < 0.92:
        other = draw.choice(list(others) or [content]).splitlines() or [b""]
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(other))
    else:
        lines.insert(
            place, draw.choice([b"", b"\0", b"null", b"[]", b"{}", b"\xff", b'"' * 7, b","])
        )
    return b"\n".join(lines) + draw.choice([b"\n", b"\n", b"\n", b"", b"\r\n"])


def _damage_line(draw: Draw, line: bytes) -> bytes:
    if line[:1] in b"{[":
        return damage_json(draw, json.loads(line)).encode()
    fields = line.split(b",")
    place = draw.randrange(len(fields))
    odd = json.dumps(draw.choice(ODD)).strip('"').encode()
    fields[place : place + draw.randrange(2)] = [draw.choice([odd, b'"', b"x" * 200_000, b"\xe9"])]
    return b",".join(fields)


def damage_sealed(draw: Draw, content: bytes, others: Sequence[bytes]) -> bytes:
    """A record of ours that says something else under a right checksum: as one that a bug of ours
    wrote, or a forger."""
    lines = content.splitlines(keepends=True)
    whole = not all(line.startswith(b"{") and line.endswith(b"}\n") for line in lines)
    place = draw.randrange(len(lines))
    text = damage_json(draw, json.loads(content if whole else lines[place]))
    try:
        record = json.loads(text)
        text = json.dumps(sealed(record)) if isinstance(record, dict) else text
    except (ValueError, RecursionError):
        pass
    made = text.encode() + b"\n"
    return made if whole else b"".join([*lines[:place], made, *lines[place + 1 :]])


def damage_shard(draw: Draw, content: bytes, others: Sequence[bytes]) -> bytes:
    """A safetensors file: bytes anywhere, bytes or JSON of the header, its length, or the data."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = draw.randrange(7)
    if kind == 0:
        return damage_bytes(draw, content, others)
    if kind == 1:
        header = damage_bytes(draw, header, ())
    elif kind in (2, 3):
        header = damage_json(draw, json.loads(header)).encode()
    elif kind == 4:
        data = damage_bytes(draw, data, ())
    elif kind == 5:
        # A single entry: what a fingerprint of samples would not see.
        at = draw.randrange(len(data))
        data = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
    else:
        length += draw.choice([-8, -1, 1, 8, 1 << 20, 1 << 62, -length])
        return length.to_bytes(8, "little") + header + data
    if draw.random() < 0.1:
        return content[:8] + header + data
    return len(header).to_bytes(8, "little") + header + data


def damage_table(draw: Draw, content: bytes, others: Sequence[bytes]) -> bytes:
    """Parquet or Arrow: bytes, the footer and its length, or any aligned number."""
    action = draw.random()
    if action < 0.5:
        return damage_bytes(draw, content, others)
    if action < 0.75:
        at = 4 * draw.randrange(len(content) // 4)
        number = int.from_bytes(content[at : at + 4], "little", signed=True)
        number = draw.choice([number + 1, number - 1, -1, 0, 1 << 30, -number, number * 2])
        return content[:at] + (number % (1 << 32)).to_bytes(4, "little") + content[at + 4 :]
    footer = int.from_bytes(content[-8:-4], "little") % max(1, len(content))
    if action < 0.85:
        length = footer + draw.choice([-footer, -1, 1, 4, 1 << 20, (1 << 31) - footer])
        return content[:-8] + (length % (1 << 32)).to_bytes(4, "little") + content[-4:]
    start = max(0, len(content) - 8 - footer)
    return content[:start] + damage_bytes(draw, content[start:-8], ()) + content[-8:]


def damage_packed(draw: Draw, content: bytes, others: Sequence[bytes]) -> bytes:
    """Rows packed with gzip: the pack, or the rows in it."""
    if draw.random() < 0.4:
        return damage_bytes(draw, content, others)
    try:
        plain = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return damage_bytes(draw, content, others)
    return gzip.compress(damage_lines(draw, plain, ()), mtime=0)


YAML = [
    "&a [*a]", "2026-01-01", "2026-01-01 10:00:00",
    "!!python/object/apply:os.system ['touch pwned']", "!!binary aGk=", "!!set {a, b}", "0x1F",
    "1e400", ".nan", "{a: [1, {b: 2}]}", "yes", "~", "''",
    "? [a]\n: b", "<<: {a: 1}", "- x", "|\n  text", "[" * 3000, "{" * 500, "\t", "'", "*nowhere",
    "&x [1,1,1,1,1,1,1,1,1]\ny: &y [*x,*x,*x,*x,*x,*x,*x,*x]\nz: [*y,*y,*y,*y,*y,*y,*y,*y,*y]",
    "!!timestamp x", "!!int x", "1:2:3",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
]  # fmt: skip


def damage_recipe(draw: Draw, content: bytes, others: Sequence[bytes]) -> bytes:
    """YAML: bytes, lines, a value or a key of another kind."""
    action = draw.random()
    if action < 0.3:
        return damage_bytes(draw, content, others)
    lines = content.decode("latin-1").splitlines()
    place = draw.randrange(1, len(lines))
    name, _, value = lines[place].partition(": ")
    odd = draw.choice([*YAML, *(json.dumps(odd) for odd in ODD)])
    if action < 0.75:
        lines[place] = f"{name}: {odd}"
    elif action < 0.85:
        lines[place] = f"{odd}: {value}"
    else:
        lines.insert(place, draw.choice([odd, f"{odd}: {value}", lines[-1]]))
    return ("\n".join(lines) + "\n").encode("latin-1", "replace")


JINJA = [
    "{% for i in range(10**9) %}{% endfor %}", "{{ 1/0 }}", "{{ messages[99].x.y }}", "{% raw %}",
    "{% include 'x' %}", "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}", "{{", "%}",
    "{{ 'x' * 10**10 }}", "{{ nowhere }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% set x = namespace() %}", "{{ messages|map('x')|list }}", "{{ '%s' % () }}", "\0", "{# ",
]  # fmt: skip


def damage_template(draw: Draw, content: bytes, others: Sequence[bytes]) -> bytes:
    """A chat template: bytes, or something that it does besides."""
    if draw.random() < 0.5:
        return damage_bytes(draw, content, others)
    tags = [0, *(found.end() for found in re.finditer(rb"[%}]\}", content))]
    at = draw.choice(tags)
    return content[:at] + draw.choice(JINJA).encode() + content[at:]


DAMAGES: dict[str, Damage] = {
    ".safetensors": damage_shard,
    ".json": damage_document,
    ".jsonl": damage_lines,
    ".csv": damage_lines,
    ".parquet": damage_table,
    ".arrow": damage_table,
    ".gz": damage_packed,
    ".yaml": damage_recipe,
    ".jinja": damage_template,
}
"""By a file's ending; of others the bytes."""


def damaged(draw: Draw, file: Path, others: Sequence[bytes], damage: Damage | None = None) -> bytes:
    """The content of a damaged file: another one than it has. How, says its ending, if nothing
    else is given."""
    content = file.read_bytes()
    damage = damage or DAMAGES.get(file.suffix, damage_bytes)
    for _ in range(20):
        made = damage(draw, content, others)
        if made != content:
            break
    return made


def replace_file(draw: Draw, file: Path) -> str:
    """Something else in a file's place; what it is."""
    kinds = ["nothing", "empty file", "folder", "full folder", "pipe"]
    kind = draw.choice([*kinds, "link to nothing", "link out", "link to itself", "link to its own"])
    content = file.read_bytes()
    file.unlink()
    if kind == "empty file":
        file.write_bytes(b"")
    elif kind.endswith("folder"):
        file.mkdir()
        if kind == "full folder":
            (file / "x").write_bytes(content)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to its own":
        file.with_name(f"{file.name}.blob").write_bytes(content)
        file.symlink_to(f"{file.name}.blob")
    elif kind.startswith("link"):
        out = os.path.relpath(OUTSIDE, file.parent)
        file.symlink_to({"link to nothing": "nowhere", "link out": out}.get(kind, file.name))
    return kind


def remove(path: Path) -> None:
    """Whatever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
