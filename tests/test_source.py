"""Sources: folders, archives, addresses and drawn patches, and what is refused of each."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import shutil
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import InputError
from model.synthetic import draw_image
from pipelines import archives
from pipelines.source import Listing, Location, listing_digest, locate_source, open_source, read_image


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


FILES = {
    f"{name}/{index}.jpg": jpeg(100 * label + index) for label, name in enumerate(("No", "Yes")) for index in (1, 2)
}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def make_rar(path: Path, files: dict[str, bytes]) -> Path:
    """A RAR 4 archive with stored files, block by block; no free program writes rar."""

    def block(kind: int, flags: int, fields: bytes) -> bytes:
        body = struct.pack("<BHH", kind, flags, 7 + len(fields)) + fields
        return struct.pack("<H", zlib.crc32(body) & 0xFFFF) + body

    blocks = [b"Rar!\x1a\x07\x00", block(0x73, 0, bytes(6))]
    for name, content in files.items():
        encoded = name.replace("/", "\\").encode()
        size, crc = len(content), zlib.crc32(content)
        fields = struct.pack("<IIBIIBBHI", size, size, 3, crc, 0x58210000, 20, 0x30, len(encoded), 0o100644)
        blocks += [block(0x74, 0x8000, fields + encoded), content]
    path.write_bytes(b"".join((*blocks, block(0x7B, 0x4000, b""))))
    return path


def list_source(source: str | Path, sha256: str | None = None) -> tuple[Listing, dict[str, bytes]]:
    with open_source(locate_source(str(source), sha256)) as listing:
        return listing, {image.filename: read_image(image) for image in listing.images}


def temporary_folders() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("crackscan-")}


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test ends with nothing left where archives are unpacked."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert temporary_folders() == set()


def test_a_folder_gives_its_images_sorted_with_their_classes(tmp_path: Path) -> None:
    listing, content = list_source(write_files(tmp_path / "src", FILES))
    assert content == FILES
    assert [image.filename for image in listing.images] == sorted(FILES)
    assert [image.class_name for image in listing.images] == ["No", "No", "Yes", "Yes"]
    assert listing.classes == ("No", "Yes")
    assert listing.skipped == {}
    assert all(os.path.isabs(image.path) for image in listing.images)


def test_what_is_no_image_is_skipped_and_counted(tmp_path: Path) -> None:
    junk = ["README.md", "top.jpg", "No/.hidden.jpg", "No/Thumbs.db", "Yes/notes.txt", "Yes/more.TXT", "Yes/plain"]
    junk += ["Yes/.cache/1.jpg", "__MACOSX/No/1.jpg", ".git/1.jpg", "empty/notes.md", "Yes/sub/__MACOSX/1.jpg"]
    extra = dict.fromkeys(junk, b"x")
    deep = {"Yes/sub/deep/9.PNG": b"an image by its name"}
    listing, content = list_source(write_files(tmp_path / "src", {**FILES, **extra, **deep}))
    assert content == {**FILES, **deep}
    assert listing.classes == ("No", "Yes")
    assert listing.skipped == {"hidden": 2, ".txt": 2, ".md": 1, "no extension": 1, "hidden folder": 2}


def test_unicode_and_undecodable_names_become_valid_text(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", {**FILES, "Ja/Straße 裂缝 😀.jpg": jpeg(7)})
    Path(os.fsdecode(os.fsencode(folder) + b"/Ja/caf\xe9.jpg")).write_bytes(jpeg(8))
    _, content = list_source(folder)
    assert content["Ja/Straße 裂缝 😀.jpg"] == jpeg(7)
    assert content["Ja/caf\\xe9.jpg"] == jpeg(8)


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", FILES)
    write_files(tmp_path / "disk", {"5.jpg": jpeg(5)})
    (folder / "Linked").symlink_to(tmp_path / "disk")
    (folder / "No" / "back").symlink_to(folder / "No")
    _, content = list_source(folder)
    assert content == {**FILES, "Linked/5.jpg": jpeg(5)}


def test_a_wrapping_folder_is_descended_through(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {f"a/b/{name}": content for name, content in FILES.items()})
    assert list_source(tmp_path / "src")[1] == FILES


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no subfolder with images"),
        ({"1.jpg": b"x"}, "no subfolder with images"),
        ({"No/1.txt": b"x", "Yes/1.heic": b"x"}, r"no subfolder with images \(skipped: 1 .heic, 1 .txt\)"),
        ({"No/1.jpg": b"x"}, r"one subfolder only \(No\)"),
        ({"No/1.jpg": b"x", "docs/1.txt": b"x"}, r"one subfolder only \(No\)"),
        ({"train/No/1.jpg": b"x", "val/No/1.jpg": b"x"}, r"are splits \(train, val\)"),
    ],
)
def test_another_layout_is_refused_in_one_line_that_shows_the_right_one(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    (tmp_path / "src").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        list_source(write_files(tmp_path / "src", files))
    assert "SRC/Negative/1.jpg, SRC/Positive/1.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folders_digest_follows_names_sizes_and_times_not_its_place(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "src", FILES)
    first = list_source(folder)[0].digest
    folder = folder.rename(tmp_path / "moved")
    assert list_source(folder)[0].digest == first
    os.utime(folder / "No/1.jpg", ns=(0, 12345))
    assert list_source(folder)[0].digest != first


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_archives(tmp_path: Path, mode: str) -> None:
    # The name says nothing: the content tells what an archive is.
    assert list_source(make_tar(tmp_path / "some.data", FILES, mode))[1] == FILES


def test_a_zip_with_a_wrapping_folder_and_macos_junk(tmp_path: Path) -> None:
    wrapped = {f"METU/{name}": content for name, content in FILES.items()}
    path = make_zip(tmp_path / "a.zip", {**wrapped, "__MACOSX/METU/._1.jpg": b"x", "METU/README.md": b"x"})
    listing, content = list_source(path)
    assert content == FILES
    assert listing.location.archive_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert listing.digest == listing_digest(listing.location)


def test_an_archive_in_an_archive(tmp_path: Path) -> None:
    inner = make_tar(tmp_path / "inner.tar.gz", FILES).read_bytes()
    outer = make_zip(tmp_path / "outer.zip", {"top/README.txt": b"x", "top/inner.tar.gz": inner})
    assert list_source(outer)[1] == FILES


def test_archives_nested_without_end_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "0.zip", FILES)
    for level in range(1, 4):
        path = make_zip(tmp_path / f"{level}.zip", {path.name: path.read_bytes()})
    with pytest.raises(InputError, match="3 deep"):
        list_source(path)


@pytest.mark.parametrize("program", ["unar", "unrar", "bsdtar", "7z"])
def test_a_zip_that_holds_a_rar_as_metu_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    found = shutil.which(program)
    if not found:
        pytest.skip(f"{program} is not installed")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / program).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    inner = make_rar(tmp_path / "Concrete Crack Images.rar", FILES)
    outer = make_zip(tmp_path / "outer.zip", {inner.name: inner.read_bytes()})
    assert list_source(outer)[1] == FILES


def test_without_a_program_for_rar_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_rar(tmp_path / "a.rar", FILES)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-get install unar"):
        list_source(path)


def test_a_damaged_rar_is_refused_with_the_programs_complaint(tmp_path: Path) -> None:
    if not any(shutil.which(program) for program, _ in archives._OPENERS):
        pytest.skip("no program for rar is installed")
    path = make_rar(tmp_path / "a.rar", FILES)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"cannot unpack a\.rar \("):
        list_source(path)


@pytest.mark.parametrize(
    "name", ["../out.jpg", "No/../../out.jpg", "/tmp/prepare-out.jpg", "..\\out.jpg", "C:\\out.jpg"]
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_entry_that_leads_out_is_refused(tmp_path: Path, make, name: str) -> None:
    path = make(tmp_path / "a", {**FILES, name: b"x"})
    with pytest.raises(InputError, match="leads out of the folder"):
        list_source(path)
    assert not list(tmp_path.rglob("*out.jpg"))
    assert not os.path.exists("/tmp/prepare-out.jpg")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = make_tar(tmp_path / "a.tar", FILES, "w")
    with tarfile.open(path, "a") as opened:
        member = tarfile.TarInfo("No/link.jpg")
        member.type, member.linkname = kind, "No/1.jpg"
        opened.addfile(member)
    with pytest.raises(InputError, match=r"No/link\.jpg is a link or a device"):
        list_source(path)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(path, "a") as opened:
        member = zipfile.ZipInfo("No/link.jpg")
        member.external_attr = 0o120777 << 16
        opened.writestr(member, "/etc/passwd")
    with pytest.raises(InputError, match=r"No/link\.jpg is a link or a device"):
        list_source(path)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_damaged_archive_is_refused(tmp_path: Path, make) -> None:
    path = make(tmp_path / "a", FILES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        list_source(path)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="neither a folder nor an archive"):
        locate_source(str(tmp_path / "a.zip"))


@pytest.mark.parametrize("source", ["nowhere", "gs://bucket/folder", "synthetic:", "synthetic:0", "synthetic:9:4"])
def test_a_source_of_no_known_kind_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=source):
        locate_source(source)


def test_the_hash_of_a_local_archive_is_checked(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", FILES)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert list_source(path, right.upper())[1] == FILES
    with pytest.raises(InputError, match=f"{right}, not the expected {'0' * 64}"):
        locate_source(str(path), "0" * 64)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        locate_source(str(path), right[:-1])


@pytest.mark.parametrize("parallel", [1, 1000])
@pytest.mark.parametrize(
    ("source", "classes"),
    [("synthetic:7", ("Negative", "Positive")), ("synthetic:6:3", ("crack", "no crack", "spalling"))],
)
def test_drawn_patches_are_what_draw_image_draws(
    monkeypatch: pytest.MonkeyPatch, source: str, classes: tuple[str, ...], parallel: int
) -> None:
    monkeypatch.setattr("pipelines.source.PARALLEL_DRAWING", parallel)
    listing, content = list_source(source)
    drawn = [draw_image(index, classes=classes) for index in range(int(source.split(":")[1]))]
    assert content == {each.filename: each.encoded for each in drawn}
    assert {image.filename: image.class_name for image in listing.images} == {
        each.filename: each.class_name for each in drawn
    }
    assert listing.classes == classes
    assert listing.digest == listing_digest(listing.location)


def test_fewer_patches_than_classes_are_refused() -> None:
    with pytest.raises(InputError, match="fewer images than its 3 classes"):
        list_source("synthetic:2:3")


class Server(http.server.ThreadingHTTPServer):
    """Serves one archive, and counts how often it is asked for it."""

    content = b""
    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        cut = self.path.startswith("/cut")
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("CRACKSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as running:
        running.content = make_zip(tmp_path / "served.zip", FILES).read_bytes()
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def cached(tmp_path: Path) -> list[bytes]:
    return [path.read_bytes() for path in (tmp_path / "cache").glob("*")]


def test_an_address_is_downloaded_once(tmp_path: Path, server: Server) -> None:
    sha256 = hashlib.sha256(server.content).hexdigest()
    for expected in (None, sha256, None):
        listing, content = list_source(f"{server.url}/a.zip?token=secret", expected)
        assert content == FILES
        assert listing.location.source == f"{server.url}/a.zip"
        assert listing.location.archive_sha256 == sha256
    assert server.requests == 1
    assert cached(tmp_path) == [server.content]


def test_a_download_with_the_wrong_hash_is_refused_and_not_kept(tmp_path: Path, server: Server) -> None:
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(InputError) as caught:
        locate_source(f"{server.url}/a.zip", "0" * 64)
    assert found in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


def test_a_cached_file_of_another_hash_is_fetched_again(tmp_path: Path, server: Server) -> None:
    locate_source(f"{server.url}/a.zip")
    server.content = make_zip(tmp_path / "served.zip", {**FILES, "Yes/new.jpg": jpeg(9)}).read_bytes()
    sha256 = hashlib.sha256(server.content).hexdigest()
    assert list_source(f"{server.url}/a.zip", sha256)[1] == {**FILES, "Yes/new.jpg": jpeg(9)}
    assert server.requests == 2


@pytest.mark.parametrize("path", ["cut.zip", "missing.zip"])
def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path: Path, server: Server, path: str) -> None:
    with pytest.raises(InputError, match=path) as caught:
        locate_source(f"{server.url}/{path}")
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


def test_a_server_that_is_not_there_is_one_line(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot download") as caught:
        locate_source(f"{server.url}/a.zip")
    assert "\n" not in str(caught.value)


def test_an_archive_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 1000, 0))
    with pytest.raises(InputError, match="set TMPDIR"):
        list_source(path)


def test_a_location_of_a_folder_has_no_digest_before_it_is_opened(tmp_path: Path) -> None:
    assert listing_digest(Location("src", str(tmp_path))) is None
