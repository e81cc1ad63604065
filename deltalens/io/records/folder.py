"""One frame for every folder of records: a sealed manifest that says what it is, a lock, and what
becomes of a folder that is begun, gone on with, or came to nothing. No torch here."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from deltalens.errors import RecordError
from deltalens.io.checksum import check_sealed, sealed
from deltalens.io.files import discard, os_reason, read_plain, write_whole
from deltalens.io.folders import make_folders, remove_empty
from deltalens.io.locks import lock_folder, unlock_folder
from deltalens.io.plain_json import check_names, parse_json
from deltalens.io.records.identity import Union, check_version, united
from deltalens.io.records.schema import Fields, require
from deltalens.io.temporary import is_temporary
from deltalens.io.version import FORMAT, FORMATS, IDENTITY, has_checksums, version

__all__ = ["Manifest", "RecordFolder"]


@dataclass(frozen=True)
class Manifest:
    """A sealed JSON file in a folder, with the format of its records and the version that wrote it:
    what makes it a folder of records."""

    what: str
    """The folder is of, for messages: "study"."""
    name: str
    """Of the file."""
    fields: Fields
    """What it has to hold."""

    def read(self, folder: Path) -> dict[str, Any]:
        """What the manifest of a folder says.

        Raises:
            RecordError: there is none, or it is damaged, of a format that this version does not
                know, or holds something else.
        """
        file = folder / self.name
        try:
            content = read_plain(file)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RecordError(f"{folder}: no {self.what} here (no {self.name})") from error
        except OSError as error:
            raise RecordError(f"{file}: cannot be read: {error.strerror}") from error
        manifest = parse_json(file, content)
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if type(found) is not int or found not in FORMATS:
            known, shown = " and ".join(map(str, FORMATS)), repr(found)[:40]
            raise RecordError(f"{file}: format {shown}; this deltalens ({version()}) reads {known}")
        check_sealed(file, manifest, has_checksums(found))
        require(file, manifest, self.fields)
        held: dict[str, Any] = manifest
        return held

    def write(self, folder: Path, fields: Mapping[str, Any]) -> None:
        """Write the manifest of a folder.

        Args:
            folder: of the records.
            fields: what it says beside format, version and checksum, as JSON values.
        """
        record = sealed({"format": FORMAT, "deltalens": version(), **fields})
        write_whole(folder / self.name, (json.dumps(record, indent=2) + "\n").encode())


class RecordFolder(ABC):
    """A folder of records open for writing, by one process at a time, until `close`.

    A kind of folder says whether it may be begun or gone on with, and what is in it then; and calls
    `_open` when it has all that it needs for that.

    Args:
        path: the folder; made if missing.
        spec: everything that decides what comes into it, as JSON values; its identity.

    Raises:
        RecordError: a name in `spec` is no valid Unicode.
    """

    manifest: ClassVar[Manifest]

    def __init__(self, path: Path, spec: Mapping[str, Any]) -> None:
        check_names(spec)
        self.path = path
        self.spec: dict[str, Any] = json.loads(json.dumps(spec))
        self.facts: dict[str, Any] = {}
        self._made: list[Path] = []
        self._lock: IO[bytes] | None = None

    @abstractmethod
    def _is_new(self) -> bool:
        """Whether the folder is to be begun, and not gone on with. Asked before anything is made,
        and again once no other process can write there: one may have, in between.

        Raises:
            RecordError: neither can be.
        """

    @abstractmethod
    def _begin(self) -> None:
        """Write what a new folder has in it."""

    def _go_on(self) -> None:
        """Read what the folder holds, and get ready for more of it.

        Raises:
            RecordError: it is of another study or training, or damaged.
        """
        raise NotImplementedError

    @abstractmethod
    def abandon(self) -> None:
        """Remove what was written to a folder that came to nothing, the folders made for it, too,
        and let go of it."""

    def _open(self) -> None:
        """Lock the folder, and begin it or go on with it. What fails leaves nothing behind."""
        new = False
        try:
            self._is_new()
            self._made = make_folders(self.path)
            self._lock = lock_folder(self.path, self.manifest.what)
            new = self._is_new()
            if new:
                self._begin()
            else:
                self._go_on()
        except BaseException as error:
            with suppress(OSError, RecordError):
                if new:
                    self.abandon()
            self._let_go()
            if isinstance(error, OSError):
                why = os_reason(error)
                raise RecordError(f"{self.path}: cannot be written: {why}") from error
            raise

    def _said(self) -> dict[str, Any]:
        """What the manifest says."""
        return {"identity": IDENTITY, "asked": self.spec, "facts": self.facts}

    def write_manifest(self) -> None:
        """Write the manifest: what was asked, and the facts so far."""
        self.manifest.write(self.path, self._said())

    def _unite(
        self, held: Mapping[str, Any], axes: Mapping[str, Union] | None = None, hint: str = ""
    ) -> None:
        """Refuse to go on with other records than those that are asked for; of ones that differ
        along axes alone, `spec` becomes that of a single call for both.

        Args:
            held: the folder's manifest.
            axes: what may differ, and how the two become one.
            hint: what to do, for the message.

        Raises:
            RecordError: names everything that differs, or both versions.
        """
        check_version(self.path, held)
        headline = f"{self.path} holds another {self.manifest.what}{hint}:"
        self.spec = united(headline, held["asked"], self.spec, axes)

    def _remove(self, names: Iterable[str]) -> None:
        """Remove files of these names and what is left of writing any, and let go of the folder."""
        left = [file.name for file in self.path.iterdir() if is_temporary(file.name)]
        for name in (*names, *left):
            with suppress(RecordError):
                discard(self.path / name)
        self._let_go()

    def _let_go(self) -> None:
        """Unlock the folder; where nothing is in it, the folders made for it go, too."""
        held, self._lock = self._lock, None
        if held is not None:
            unlock_folder(self.path, held)
        remove_empty(self._made)

    def close(self) -> None:
        """Let another process have the folder."""
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
