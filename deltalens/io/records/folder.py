"""What all folders of records have in common: a sealed manifest that says what the folder is, a
lock, and how a folder is started, resumed or abandoned. No torch here."""

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
    """The sealed JSON file that makes a folder a folder of records. It states the format of the
    records and the version of deltalens that wrote it."""

    what: str
    """What the folder is, for messages: "study"."""
    name: str
    """Name of the file."""
    fields: Fields
    """The fields that it must have."""

    def read(self, folder: Path) -> dict[str, Any]:
        """Read the manifest of a folder.

        Args:
            folder: the folder of records.

        Returns:
            Its fields, checked.

        Raises:
            RecordError: there is no manifest; or it is damaged, of an unknown format, or has other
                fields than expected.
        """
        file = folder / self.name
        try:
            content = read_plain(file)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RecordError(
                f"{folder}: contains no {self.what} (there is no {self.name})"
            ) from error
        except OSError as error:
            raise RecordError(f"{file}: cannot be read: {error.strerror}") from error
        parsed = parse_json(file, content)
        format = parsed.get("format") if isinstance(parsed, dict) else None
        if type(format) is not int or format not in FORMATS:
            readable, shown = " and ".join(map(str, FORMATS)), repr(format)[:40]
            raise RecordError(
                f"{file}: format {shown}; this deltalens ({version()}) reads formats {readable}"
            )
        check_sealed(file, parsed, has_checksums(format))
        require(file, parsed, self.fields)
        manifest: dict[str, Any] = parsed
        return manifest

    def write(self, folder: Path, fields: Mapping[str, Any]) -> None:
        """Write the manifest of a folder.

        Args:
            folder: the folder of records.
            fields: JSON values. Format, version and checksum are added.

        Raises:
            DeltaLensError: the folder is not writable.
        """
        record = sealed({"format": FORMAT, "deltalens": version(), **fields})
        write_whole(folder / self.name, (json.dumps(record, indent=2) + "\n").encode())


class RecordFolder(ABC):
    """A folder of records that is open for writing, by one process at a time, until `close`.

    Subclasses decide whether a folder may be started or resumed, and what it then contains. Their
    constructor calls `_open` at the end.

    Args:
        path: the folder; created if missing.
        spec: the identity: everything that decides what is recorded, as JSON values.

    Raises:
        RecordError: a name in `spec` is not valid Unicode.
    """

    manifest: ClassVar[Manifest]

    def __init__(self, path: Path, spec: Mapping[str, Any]) -> None:
        check_names(spec)
        self.path = path
        self.spec: dict[str, Any] = json.loads(json.dumps(spec))
        self.facts: dict[str, Any] = {}
        self._created: list[Path] = []
        self._lock: IO[bytes] | None = None

    @abstractmethod
    def _is_new(self) -> bool:
        """Whether the folder is to be started, and not resumed.

        Called before anything is created, and again once the folder is locked: another process may
        have written to it in between.

        Raises:
            RecordError: the folder can be neither started nor resumed.
        """

    @abstractmethod
    def _start(self) -> None:
        """Write the initial content of a new folder."""

    def _resume(self) -> None:
        """Read the folder's content, and prepare to add to it.

        Raises:
            RecordError: it belongs to another study or training, or is damaged.
        """
        raise NotImplementedError

    @abstractmethod
    def abandon(self) -> None:
        """Remove everything that was written to the folder, and unlock it; a folder that was
        created for this is removed, too."""

    def _open(self) -> None:
        """Lock the folder, and start or resume it. On an error, nothing is left behind."""
        new = False
        try:
            self._is_new()
            self._created = make_folders(self.path)
            self._lock = lock_folder(self.path, self.manifest.what)
            new = self._is_new()
            if new:
                self._start()
            else:
                self._resume()
        except BaseException as error:
            with suppress(OSError, RecordError):
                if new:
                    self.abandon()
            self._release()
            if isinstance(error, OSError):
                why = os_reason(error)
                raise RecordError(f"{self.path}: cannot be written: {why}") from error
            raise

    def _manifest_fields(self) -> dict[str, Any]:
        """The content of the manifest."""
        return {"identity": IDENTITY, "asked": self.spec, "facts": self.facts}

    def write_manifest(self) -> None:
        """Write the manifest: the specification, and the facts so far.

        Raises:
            DeltaLensError: the folder is not writable.
        """
        self.manifest.write(self.path, self._manifest_fields())

    def _unite(
        self, manifest: Mapping[str, Any], axes: Mapping[str, Union] | None = None, hint: str = ""
    ) -> None:
        """Refuse to resume records with another specification. If it differs along axes only,
        `spec` becomes the specification of a single call for both.

        Args:
            manifest: the manifest in the folder.
            axes: what may differ, and how the values are united.
            hint: what to do, for the message.

        Raises:
            RecordError: names everything that differs, or both versions.
        """
        check_version(self.path, manifest)
        headline = f"{self.path} holds another {self.manifest.what}{hint}:"
        self.spec = united(headline, manifest["asked"], self.spec, axes)

    def _remove(self, names: Iterable[str]) -> None:
        """Remove files of these names and all temporary files, and release the folder."""
        temporary = [file.name for file in self.path.iterdir() if is_temporary(file.name)]
        for name in (*names, *temporary):
            with suppress(RecordError):
                discard(self.path / name)
        self._release()

    def _release(self) -> None:
        """Unlock the folder. If it was created for this and is empty, remove it."""
        lock_file, self._lock = self._lock, None
        if lock_file is not None:
            unlock_folder(self.path, lock_file)
        remove_empty(self._created)

    def close(self) -> None:
        """Unlock the folder, so that other processes can write to it."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
