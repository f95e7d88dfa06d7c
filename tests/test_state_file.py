"""State files tell damage from content: cut, changed, foreign and hostile ones are named, and none runs code."""

import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vit.training import state_file
from vit.training.state_file import (
    DamagedStateError,
    best_of,
    previous_of,
    read_newest_state,
    read_state,
    sealed,
    write_state,
)


def state_of(number: int) -> dict:
    return {"number": number, "weights": torch.arange(50.0) + number, "rows": [{"loss": 0.5}], "name": "ä"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state.pt"
    write_state(path, state_of(1))
    return path


def test_what_was_written_is_read_and_torch_alone_reads_it_too(path):
    for read in (read_state(path), torch.load(path, weights_only=True)):
        assert torch.equal(read.pop("weights"), state_of(1)["weights"])
        assert read == {"number": 1, "rows": [{"loss": 0.5}], "name": "ä"}
    with zipfile.ZipFile(path) as archive:  # by another reader: a whole archive, with our comment
        assert archive.testzip() is None and archive.comment.startswith(b"vit-state 1 ")


def test_cut_off_anywhere(path):
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(DamagedStateError, match="state.pt is (empty|cut off|not a training state)"):
            read_state(path)


def test_any_flipped_bit_is_seen(path):
    """torch alone is the control: it loads most of them, some with other weights."""
    raw, rng, silent = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        damaged, place = bytearray(raw), rng.randrange(len(raw))
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedStateError):
            read_state(path)
        try:
            silent += not torch.equal(torch.load(path, weights_only=True)["weights"], state_of(1)["weights"])
        except Exception:
            continue
    assert silent > 0, "the control: without the hash, wrong weights would be taken"


@pytest.mark.parametrize(
    "raw,message",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>502</html>", r"is not a training state \(it starts with b'<!DOCTYP'\)"),
        (b"PK\3\4" + b"\0" * 5000, "is cut off after 5,004 bytes, or was not written by vit.fit"),
    ],
)
def test_other_files_are_named(path, raw, message):
    path.write_bytes(raw)
    with pytest.raises(DamagedStateError, match=message):
        read_state(path)


def test_missing_files_and_folders(tmp_path):
    write_state(tmp_path / "other.pt", state_of(1))
    with pytest.raises(FileNotFoundError, match=r"no training state at .*state.pt; in that folder: other.pt$"):
        read_state(tmp_path / "state.pt")
    with pytest.raises(FileNotFoundError, match=r"is a folder and no training state; in that folder: other.pt$"):
        read_state(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pt")  # opening it would wait forever
        with pytest.raises(FileNotFoundError):
            read_state(tmp_path / "pipe.pt")


class Hostile:
    """A pickle that makes a file when it is read carelessly."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_hostile_pickle_runs_nothing(tmp_path, is_sealed):
    """Also with a right hash, as a stranger could give it."""
    path, marker = tmp_path / "state.pt", tmp_path / "marker"
    torch.save({"a": Hostile(marker)}, path)
    if is_sealed:
        path.write_bytes(b"".join(sealed(path.read_bytes())))
    with pytest.raises(DamagedStateError) as caught:
        read_state(path)
    assert not marker.exists() and "weights_only" not in str(caught.value)
    if is_sealed:
        assert "something else than tensors and plain values (Unsupported global: GLOBAL io.open)" in str(caught.value)
    pickle.loads(pickle.dumps(Hostile(marker))).close()
    assert marker.exists(), "the control: read carelessly, it does run"


def test_what_could_not_be_read_again_is_not_kept(path):
    """A loss function that counts with numpy would be found out at the resume, too late."""
    with pytest.raises(DamagedStateError, match=r"plain values \(state\[.sums.\]\[.loss.\]: numpy.float64\)"):
        write_state(path, {"sums": {"loss": np.float64(0.5)}})
    assert read_state(path)["number"] == 1 and os.listdir(path.parent) == ["state.pt"]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("form", ["module", "script"])
def test_whole_modules_are_no_states(tmp_path, form):
    path = tmp_path / "state.pt"
    if form == "module":
        torch.save(nn.Linear(2, 2), path)
    else:
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
    with pytest.raises(DamagedStateError, match="was not written by vit.fit"):
        read_state(path)


def test_a_newer_format_asks_for_an_upgrade(path, monkeypatch):
    monkeypatch.setattr(state_file, "FORMAT", 2)
    write_state(path, state_of(2))
    monkeypatch.setattr(state_file, "FORMAT", 1)
    with pytest.raises(ValueError, match="has format 2, this version of vit reads 1: upgrade vit") as caught:
        read_newest_state(path)
    assert not isinstance(caught.value, DamagedStateError) and path.exists(), "it is not damaged, so it stays"


def test_states_of_the_first_format_stay_readable():
    """A file written on 2026-11-23, when the format was new."""
    state = read_state(state_file.Path(__file__).parent / "state_format_1.pt")
    assert state["number"] == 1 and torch.equal(state["weights"], state_of(1)["weights"])


def test_the_one_before_and_the_best_are_kept(tmp_path):
    path = tmp_path / "state.pt"
    for number, is_best in enumerate([False, True, False, False]):
        write_state(path, state_of(number), is_best=is_best)
    assert [read_state(p)["number"] for p in (path, previous_of(path), best_of(path))] == [3, 2, 1]
    assert sorted(os.listdir(tmp_path)) == ["state.best.pt", "state.previous.pt", "state.pt"]


def test_a_disk_without_links_gets_copies(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("vit.files.os.link", refused)
    test_the_one_before_and_the_best_are_kept(tmp_path)


def test_a_write_that_fails_anywhere_leaves_a_whole_state(tmp_path, monkeypatch):
    """Every call that could fail does so once, at each of its uses: there is always a whole state to go on from."""
    path = tmp_path / "state.pt"
    write_state(path, state_of(1))
    write_state(path, state_of(2))
    for name in ("fsync", "replace", "link", "chmod"):
        for use in range(6):
            real, count = getattr(os, name), iter(range(99))

            def failing(*arguments, real=real, count=count, use=use, **options):
                if next(count) == use:
                    raise OSError(28, "No space left on device")
                return real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(os, name, failing)
                try:
                    write_state(path, state_of(3), is_best=True)
                    is_written = True
                except OSError:
                    is_written = False
            number = read_state(path)["number"]
            assert number == 3 if is_written else number in (2, 3)
            assert read_state(previous_of(path))["number"] in (1, 2, 3)
            assert not list(tmp_path.glob(".*")), "no litter"
            write_state(path, state_of(2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files")
def test_a_real_limit_of_the_system_is_like_a_full_disk(path):
    import resource
    import signal

    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_state(path, state_of(2))
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 27  # EFBIG
    assert path.read_bytes() == before and os.listdir(path.parent) == ["state.pt"]


def test_what_a_write_got_wrong_is_noticed_before_it_counts(path, monkeypatch):
    """A disk that loses a byte: the check after writing must see it, and the old state stay."""
    monkeypatch.setattr("vit.training.state_file.os.fsync", lambda number: os.ftruncate(number, 1000))
    with pytest.raises(OSError, match="what was written cannot be read back"):
        write_state(path, state_of(2))
    assert read_state(path)["number"] == 1 and os.listdir(path.parent) == ["state.pt"]


def test_setting_a_damaged_state_aside(path, capfd):
    write_state(path, state_of(2))
    path.write_bytes(b"x")
    assert read_newest_state(path)["number"] == 1
    assert "is kept as state.pt.bad. Going on from the state before it" in capfd.readouterr().err
    assert sorted(os.listdir(path.parent)) == ["state.previous.pt", "state.pt.bad"]
    write_state(path, state_of(3))  # must not put anything in the place of the good one
    assert read_state(previous_of(path))["number"] == 1 and read_newest_state(path)["number"] == 3


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TENSORS = st.builds(
    lambda shape, dtype, seed: (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
TREES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
def test_any_tree_of_tensors_and_plain_values_comes_back(tmp_path_factory, tree):
    from kills import same

    path = tmp_path_factory.getbasetemp() / "tree.pt"
    write_state(path, {"tree": tree})
    assert same(read_state(path), {"tree": tree})
