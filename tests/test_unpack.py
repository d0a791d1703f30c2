"""scripts/downloading/unpack.py: archives that are damaged, hostile or strange; whole or not at all."""

import errno
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.errors import DemoBertError, one_line
from scripts.downloading import unpack as module
from scripts.downloading.unpack import unpack
from tests import fuzz_archives, fuzzing
from tests.conftest import ROOT
from tests.fuzz_archives import files_of

FILES = {"vocab.txt": b"words " * 200, "folder/weights": bytes(range(256)) * 40}


def archive(path: Path, files, method=zipfile.ZIP_DEFLATED) -> Path:
    """A zip file of (name, content) pairs or a dict; a ZipInfo may stand for a name."""
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, content in files.items() if isinstance(files, dict) else files:
            opened.writestr(name, content)
    return path


def central(data: bytes, name: bytes) -> int:
    """Where the directory's entry of a name begins."""
    return data.rindex(name) - 46


def edited(path: Path, name: bytes, place: int, form: str, value) -> Path:
    """The archive with another value in the directory's entry of `name`."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, central(data, name) + place, value)
    path.write_bytes(data)
    return path


def refused(tmp_path: Path, path: Path) -> str:
    """The one line that refuses an archive; nothing but the archive is in the folder then."""
    with pytest.raises(DemoBertError) as caught:
        unpack(path, tmp_path / "out")
    assert os.listdir(tmp_path) == [path.name]
    return one_line(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_becomes_its_files(tmp_path, method):
    path = archive(tmp_path / "a.zip", FILES | {"empty": b"", "./here/": b"", "./here/x": b"x"}, method)
    unpack(path, tmp_path / "out")
    assert files_of(tmp_path / "out") == FILES | {"empty": b"", "here/x": b"x"}
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "out"]
    with pytest.raises(DemoBertError, match="there already"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("there", ["file", "folder", "empty folder", "link to nothing"])
def test_what_is_there_is_kept(tmp_path, there):
    path, out = archive(tmp_path / "a.zip", FILES), tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "link to nothing":
        out.symlink_to("nothing")
    else:
        (out / "mine" if there == "folder" else out).mkdir(parents=True)
    before = (out.lstat().st_ino, files_of(tmp_path))
    with pytest.raises(DemoBertError, match="there already"):
        unpack(path, out)
    assert (out.lstat().st_ino, files_of(tmp_path)) == before


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("/etc/x", "outside"),
        ("../x", "outside"),
        ("a/../../x", "outside"),
        ("a\\..\\x", "outside"),
        ("C:/x", "outside"),
        ("../", "outside"),
        ("a\nb", "control characters"),
        ("a\x1b[2Jb", "control characters"),
        ("a\u202eb", "control characters"),
        ("n" * 300, "more than 255 bytes"),
        ("é" * 200, "more than 255 bytes"),
        ("d/" * 300 + "x", "more than 255 bytes"),
        (".", "without a name"),
        ("./.", "without a name"),
    ],
)
def test_names_that_are_refused(tmp_path, name, complaint):
    assert complaint in refused(tmp_path, archive(tmp_path / "a.zip", FILES | {name: b"x"}))


@pytest.mark.parametrize(("other", "complaint"), [(b"wo\0ds", "control"), (b"\0\0\0\0\0", "control"), (b"", "name")])
def test_names_that_python_does_not_write(tmp_path, other, complaint):
    path = archive(tmp_path / "a.zip", {"a": b"a", "words" if other else "w": b"x" * 50}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    if other:
        data = data.replace(b"words", other)
    else:  # the name's length becomes 0, and the directory a byte shorter
        place, end = central(data, b"w"), data.rindex(b"PK\5\6")
        size = struct.unpack_from("<L", data, end + 12)[0] - 1
        data = data[: place + 28] + b"\0\0" + data[place + 30 : place + 46] + data[place + 47 :]
        data = data[: end - 1 + 12] + struct.pack("<L", size) + data[end - 1 + 16 :]
    path.write_bytes(data)
    assert complaint in refused(tmp_path, path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ("a", "a", "twice"),
        ("a/b", "a//b", "twice"),
        ("Vocab.txt", "vocab.TXT", "their case only"),
        ("stra\u00dfe", "STRASSE", "their case only"),
        ("\u00e9", "e\u0301", "twice"),
        ("a", "a/b", "both as a file and as a folder"),
        ("x/A/b", "X/a", "both as a file and as a folder"),
        ("a/", "a", "both as a file and as a folder"),
    ],
)
def test_names_that_collide(tmp_path, first, second, complaint):
    for number, pair in enumerate(((first, second), (second, first))):
        (tmp_path / str(number)).mkdir()
        path = archive(tmp_path / str(number) / "a.zip", [(name, b"") for name in pair])
        assert complaint in refused(path.parent, path)


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o060644, 0o140644])
def test_links_and_special_files(tmp_path, mode):
    entry = zipfile.ZipInfo("vocab.txt")
    entry.external_attr = mode << 16
    assert "not a plain file" in refused(tmp_path, archive(tmp_path / "a.zip", [(entry, b"/etc/passwd")]))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("declared", [0, 1199, 1201, 14_000_000, (4 << 30) - 2])
def test_declared_and_real_sizes_must_agree(tmp_path, monkeypatch, method, declared):
    monkeypatch.setattr(module, "MAX_RATIO", 1 << 40)
    path = edited(archive(tmp_path / "a.zip", FILES, method), b"vocab.txt", 24, "<L", declared)
    refused(tmp_path, path)


def test_a_size_that_is_not_the_declared_one_but_has_the_crc(tmp_path):
    """The CRC-32 is that of the real bytes: nothing but their number is wrong."""
    path = edited(archive(tmp_path / "a.zip", {"a": b"x" * 3000}), b"a", 24, "<L", 4000)
    assert "declares 4000 bytes, and holds 3000" in refused(tmp_path, path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(tmp_path, method):
    """Python would unpack a whole block of them at once."""
    assert "other than deflate" in refused(tmp_path, archive(tmp_path / "a.zip", FILES, method))


@pytest.mark.parametrize(
    ("place", "form", "value", "complaint"),
    [
        (8, "<H", 1, "encrypted"),
        (8, "<H", 1 << 6, "strong encryption"),
        (16, "<L", 7, "CRC"),
        (10, "<H", 9, "other than deflate"),
        (42, "<L", 1, "overlap"),
        (42, "<L", 1 << 30, "ends before its entries do"),
    ],
)
def test_directories_that_say_something_else(tmp_path, place, form, value, complaint):
    path = edited(archive(tmp_path / "a.zip", FILES), b"folder/weights", place, form, value)
    assert complaint in refused(tmp_path, path)


def test_entries_that_share_their_content(tmp_path):
    """David Fifield's zip bomb: many names for one stream of zeros."""
    entries = [(f"zeros{number}", b"\0" * 9_000_000 if number == 0 else b"") for number in range(9)]
    path = archive(tmp_path / "a.zip", entries)
    data = bytearray(path.read_bytes())
    first = bytes(data[central(data, b"zeros0") + 16 :][:12])
    for number in range(1, 9):
        place = central(data, b"zeros%d" % number)
        data[place + 16 : place + 28] = first
        data[place + 42 : place + 46] = bytes(4)
    path.write_bytes(data)
    assert "overlap" in refused(tmp_path, path)


def test_bombs(tmp_path, monkeypatch):
    assert "no model does that" in refused(tmp_path, archive(tmp_path / "a.zip", {"a": bytes(40 << 20)}))
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    assert "no model does that" in refused(tmp_path, archive(tmp_path / "a.zip", {"a": b"x" * 1001}))
    many = {f"{number}": b"" for number in range(module.MAX_ENTRIES + 1)}
    assert "more than 10000 entries" in refused(tmp_path, archive(tmp_path / "a.zip", many))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        for number in range(70):
            entry = zipfile.ZipInfo(str(number))
            entry.comment = b"c" * 65535
            opened.writestr(entry, b"")
    assert "directory is too large" in refused(tmp_path, tmp_path / "a.zip")


class _Full(io.FileIO):
    """A file on a disk that is full after so many bytes."""

    room = 3000

    def write(self, data):
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(module, "open", _Full, raising=False)
    assert "No space left on device" in refused(tmp_path, path)


def test_a_disk_that_is_too_small_is_seen_before(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 0))
    monkeypatch.setattr(module, "_write", None)
    assert "are free on the disk" in refused(tmp_path, path)


@pytest.mark.parametrize("what", ["missing", "folder", "empty", "pipe"])
def test_what_is_no_archive(tmp_path, what):
    path = tmp_path / "a.zip"
    {"missing": lambda: None, "folder": path.mkdir, "empty": path.touch, "pipe": lambda: os.mkfifo(path)}[what]()
    with pytest.raises(DemoBertError, match="the zip file"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def waiting_run(tmp_path: Path, path: Path) -> subprocess.Popen:
    """A run that stops for good before it gives the folder its name."""
    code = (
        "import os, sys, time; from scripts.downloading import unpack as m\n"
        "m.os.rename = lambda *names: (print('here', flush=True), time.sleep(600))\n"
        "m.unpack(*sys.argv[1:])"
    )
    run = subprocess.Popen([sys.executable, "-c", code, path, tmp_path / "out"], cwd=ROOT, stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"here\n"
    return run


def test_a_run_that_was_killed_leaves_nothing_under_the_name_and_the_next_one_cleans_up(tmp_path):
    path = archive(tmp_path / "a.zip", FILES)
    with waiting_run(tmp_path, path) as run:
        with pytest.raises(DemoBertError, match="another run is unpacking there"):
            unpack(path, tmp_path / "out")
        assert files_of(tmp_path / ".out.unpacking.tmp" / "content") == FILES  # it was left alone
        run.send_signal(signal.SIGKILL)
    assert sorted(os.listdir(tmp_path)) == [".out.unpacking.tmp", "a.zip"]
    (tmp_path / ".out.unpacking.tmp" / "content" / "stale").write_text("of the dead run")
    unpack(path, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "out"] and files_of(tmp_path / "out") == FILES


def test_an_archive_that_is_refused_cleans_up_as_well(tmp_path):
    (tmp_path / ".out.unpacking.tmp" / "content" / "folder").mkdir(parents=True)
    assert "damaged" in refused(tmp_path, edited(archive(tmp_path / "a.zip", FILES), b"vocab.txt", 16, "<L", 7))


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path):
    path, other = archive(tmp_path / "a.zip", FILES), tmp_path / "other"
    (other / "content").mkdir(parents=True)
    (other / "content" / "mine").write_text("mine")
    (tmp_path / ".out.unpacking.tmp").symlink_to(other)
    with pytest.raises(DemoBertError, match="can't unpack"):
        unpack(path, tmp_path / "out")
    assert files_of(other) == {"content/mine": b"mine"}


def test_damaged_archives_of_all_kinds_are_unpacked_or_refused(rng):
    """20,000 rounds: python3 -m tests.fuzz_archives --rounds 20000"""
    assert fuzz_archives.main(["--rounds", "400", "--seed", str(rng.integers(1 << 32))]) == 0


def test_the_fuzzer_finds_what_is_wrong(monkeypatch, tmp_path, capsys):
    """A traceback, something left, a wrong size, an escape."""
    seeds = fuzz_archives.write_seeds(tmp_path)

    def left(archive, folder):
        (Path(folder).parent / ".left.tmp").mkdir()
        raise DemoBertError("refused")

    def escape(archive, folder):
        Path(folder).mkdir()
        (Path(folder).parent.parent / "escaped").write_text("x")

    def wrong(archive, folder):
        Path(folder).mkdir()
        (Path(folder) / "link").symlink_to("/")

    def traceback(archive, folder):
        raise IndexError("x")

    for broken, outcome in ((left, "leftovers"), (escape, "escapes"), (wrong, "wrong"), (traceback, "tracebacks")):
        monkeypatch.setattr(fuzz_archives, "unpack", broken)
        assert outcome in fuzzing.run_rounds(0, 3, seeds, fuzz_archives.one_round), outcome
