"""A disk that loses what was not synced, and one that fails at a chosen call: by strace.

`record` runs a process and notes, in order, every write, truncation, creation, rename, removal and
sync in one folder, with the bytes, and every line the process printed. `Record.power_cut` builds
the folder as a power cut at any point of that may leave it:

- what was written before a sync of its file that has returned is there;
- of later writes and truncations each is there, is not, or (a write) is there up to a multiple of
  512 bytes, by a seeded choice;
- of creations, renames and removals those before a sync of the folder that has returned are there;
  of later ones a seeded number, in order.

docs/journal-format.md section 8 says what this shows and what it does not.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Event", "Record", "failing", "plan_arguments", "record", "strace_fault"]

SECTOR = 512
FILE_CALLS = (
    "write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,fsync,fdatasync,sync_file_range,"
    "rename,renameat,renameat2,unlink,unlinkat,link,linkat,openat,open,creat,copy_file_range,sendfile"
)
_LINE = re.compile(r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))$")
_RETURN = re.compile(r"^(.*)\)\s+= (-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_FD = re.compile(r"(-?\d+)<((?:\\x[0-9a-f]{2})*)>")


def strace_fault() -> str:
    """Return why processes cannot be traced here, or an empty text."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed (Debian: apt-get install strace)"
    probe = [strace, "-f", "--seccomp-bpf", "-qq", "-e", "trace=fsync", "-o", "/dev/null", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"strace does not work here: {done.stderr.strip()}"


@dataclass(slots=True)
class Event:
    """One thing that happened: to a file, to a name, or a line printed."""

    kind: str  # create, write, truncate, rename, unlink, sync, sync-folder, line
    path: str = ""
    offset: int = 0
    data: bytes = b""
    target: str = ""  # of a rename; the text of a line
    began: int = 0  # of a sync: how many events there were when it was called


@dataclass
class _File:
    """One file of the played disk."""

    synced: bytearray = field(default_factory=bytearray)
    later: list[Event] = field(default_factory=list)  # not synced, in order


@dataclass
class Record:
    """What a process did, in order."""

    events: list[Event]
    exit_code: int
    errors: str

    def lines(self, cut: int | None = None) -> list[list[str]]:
        """Return the words of the lines printed, or begun to be printed, before a cut."""
        return [e.target.split() for e in self.events[:cut] if e.kind == "line"]

    def power_cut(
        self,
        cut: int,
        folder: Path,
        rng: random.Random,
        lossy: Callable[[str], bool] = lambda _folder: True,
    ) -> None:
        """Fill an empty `folder` with what a power cut after `cut` events may leave.

        Args:
            cut: How many events there were.
            folder: Where to.
            rng: Chooses what of the rest is there.
            lossy: Whether the machine whose folder this is, relative to the one recorded, lost its
                power; of the others only the process ended.
        """
        names, files = self._names(cut, rng, lossy), self._files(cut)
        for name, number in names.items():
            if name.endswith("-shm"):
                continue  # memory shared by processes: nobody reads it after a start
            file = files[number]
            data = bytearray(file.synced)
            for event in file.later:
                _apply(data, _perhaps(event, rng) if lossy(_folder_of(name)) else event)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    def _names(self, cut: int, rng: random.Random, lossy: Callable[[str], bool]) -> dict[str, int]:
        """Return the files by name; a file's number is the index of its creation."""
        events = self.events[:cut]
        by_folder: dict[str, list[int]] = {}
        for at, event in enumerate(events):
            if event.kind in ("create", "rename", "unlink"):
                by_folder.setdefault(_folder_of(event.path), []).append(at)
        done: list[int] = []
        for folder, changes in by_folder.items():
            syncs = (e.began for e in events if (e.kind, e.path) == ("sync-folder", folder))
            sure = max(syncs, default=0)
            safe = sum(at < sure for at in changes)
            kept = rng.randint(safe, len(changes)) if lossy(folder) else len(changes)
            done += changes[:kept]
        names: dict[str, int] = {}
        for at in sorted(done):
            event = events[at]
            if event.kind == "create":
                names[event.path] = at
            elif event.path in names:
                number = names.pop(event.path)
                if event.kind == "rename":
                    names[event.target] = number
        return names

    def _files(self, cut: int) -> dict[int, _File]:
        """Return every file there ever was, with what of it is synced and what is not."""
        files: dict[int, _File] = {}
        names: dict[str, int] = {}
        for at, event in enumerate(self.events[:cut]):
            if event.kind == "create":
                names[event.path] = at
                files[at] = _File()
            elif event.kind == "rename":
                names[event.target] = names.pop(event.path)
            elif event.kind == "unlink":
                names.pop(event.path)
            elif event.path not in names:
                continue  # a file that was open when it was removed
            elif event.kind in ("write", "truncate"):
                event.began = at
                files[names[event.path]].later.append(event)
            elif event.kind == "sync":
                file = files[names[event.path]]
                while file.later and file.later[0].began < event.began:
                    _apply(file.synced, file.later.pop(0))
        return files


def record(arguments: Sequence[str], folder: Path, log: Path) -> Record:
    """Run Python with `arguments` and note what it does to the files in `folder`.

    Args:
        arguments: `-m module argument ...`.
        folder: Where the files lie; it must be empty.
        log: Where strace writes; overwritten.
    """
    command = [
        "strace", "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", "16777216",
        "-e", f"trace={FILE_CALLS}", "-o", str(log), sys.executable, *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False)
    events = list(_parse(log, str(folder.resolve())))
    log.unlink()
    return Record(events, done.returncode, done.stderr.decode())


def failing(
    calls: str, error: str, when: str, arguments: Sequence[str], path: Path
) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` while calls on one file fail.

    Args:
        calls: Names of system calls, by comma.
        error: `EIO`, `ENOSPC`, ...
        when: Which of the calls fail, as strace counts them: `3`, or `3+` for all from then on.
        arguments: `-m module argument ...`.
        path: The file.
    """
    command = [
        "strace", "-f", "-qq", "-P", str(path), "-e", f"trace={calls}",
        "-e", f"inject={calls}:error={error}:when={when}", "-o", "/dev/null",
        sys.executable, *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def plan_arguments(plan: object) -> list[str]:
    """Return the arguments that run tests/kit/journal_writer.py on a plan."""
    return ["-m", "tests.kit.journal_writer", json.dumps(vars(plan))]


def _perhaps(event: Event, rng: random.Random) -> Event | None:
    """Return a write that was not synced as it may have reached the disk, or None."""
    choice = rng.random()
    if choice < 0.4:
        return None
    if event.kind == "write" and choice < 0.6:
        whole = len(event.data) // SECTOR
        return Event(
            "write", event.path, event.offset, event.data[: rng.randint(0, whole) * SECTOR]
        )
    return event


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _apply(data: bytearray, event: Event | None) -> None:
    if event is None:
        return
    if event.kind == "truncate":
        size = event.offset
        data[size:] = bytes(max(0, size - len(data)))
        return
    end = event.offset + len(event.data)
    if not event.data:
        return
    if end > len(data):
        data.extend(bytes(end - len(data)))
    data[event.offset : end] = event.data


def _parse(log: Path, folder: str) -> list[Event]:
    """Return the events of a log of strace."""
    events: list[Event] = []
    known: set[str] = set()  # names that exist
    begun: dict[str, tuple[str, str, int]] = {}  # calls not returned, by process
    ends: dict[str, int] = {}  # where the next plain write to a file goes

    def finish(call: str, text: str, result: int, began: int) -> None:
        names = _names_in(call, text, folder)
        if result < 0 or not names:
            return
        name = names[0]
        if call in ("openat", "open", "creat"):
            if "O_CREAT" in text and name and name not in known:
                known.add(name)
                ends[name] = 0
                events.append(Event("create", name))
            assert "O_TRUNC" not in text or name.endswith(".lock"), text[-80:]
        elif call in ("pwrite64", "write"):
            data = _bytes_in(text)[:result]
            if call == "pwrite64":
                offset = int(text.rsplit(",", 1)[1])
            else:
                offset = ends.get(name, 0)
                ends[name] = offset + result
            events.append(Event("write", name, offset, data))
        elif call == "ftruncate":
            events.append(Event("truncate", name, int(text.rsplit(",", 1)[1])))
        elif call in ("fsync", "fdatasync"):
            events.append(Event("sync" if name in known else "sync-folder", name, began=began))
        elif call.startswith("rename"):
            known.discard(name)
            known.add(names[-1])
            events.append(Event("rename", name, target=names[-1]))
        elif call.startswith("unlink"):
            known.discard(name)
            events.append(Event("unlink", name))
        else:
            raise AssertionError(f"{call} is not played: {text[:200]}")

    for line in log.read_text("ascii").splitlines():
        match = _LINE.match(line)
        if match is None:
            assert line.endswith("+++"), line[:200]  # the end of a thread
            continue
        process, call, text, resumed, rest = match.groups()
        if resumed:
            call, text, began = begun.pop(process)
            text += rest
        else:
            began = len(events)
            if call == "write" and text.startswith("1<"):
                said = _bytes_in(text).decode("ascii").rstrip("\n")
                events.append(Event("line", target=said))
            if text.endswith("<unfinished ...>"):
                begun[process] = (call, text.removesuffix("<unfinished ...>").rstrip(), began)
                continue
        returned = _RETURN.match(text)
        assert returned is not None, line[:200]
        finish(call, returned[1], int(returned[2]), began)
    return events


def _bytes_in(text: str) -> bytes:
    found = _STRING.search(text)
    assert found is not None, text[:200]
    assert not found[2], "strace cut a string short"
    return bytes.fromhex(found[1].replace("\\x", ""))


def _names_in(call: str, text: str, folder: str) -> list[str]:
    """Return what a call names in the folder, relative to it; "" is the folder itself."""
    if call.startswith(("open", "creat", "rename", "unlink", "link")):
        paths = [_unhex(string) for string, _ in _STRING.findall(text)]
    else:
        descriptor = _FD.match(text)
        paths = [_unhex(descriptor[2])] if descriptor else []
    found = []
    for path in paths:
        if path == folder:
            found.append("")
        elif path.startswith(folder + "/"):
            found.append(path.removeprefix(folder + "/"))
    return found


def _unhex(text: str) -> str:
    return bytes.fromhex(text.replace("\\x", "")).decode("utf-8", "replace")
