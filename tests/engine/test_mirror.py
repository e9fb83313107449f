"""The copy of a run in a store: what is brought there and back, whatever cuts it off."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import autocompress as ac
from autocompress.checkpoint.store import remove_checkpoint, trial_folder
from autocompress.engine.folder import RunFolder, opened_run
from autocompress.engine.mirror import LOCK, Mirror, _whole, cache_folder
from autocompress.engine.saving import Saver, saving
from autocompress.remote.lock import RemoteLock
from autocompress.remote.store import RemoteError, RemoteStore
from autocompress.trial import Stage, TrialConfig
from tests.remote.server import Server, serving
from tests.report.runs import WrittenRun

BETTER = TrialConfig((Stage("lc", {"steps": 9}),), 2, 0)


def say(text: str) -> None:
    pass


def check() -> None:
    pass


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(params=["s3", "file"])
def address(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> str:
    return server.address(f"{tmp_path.name}/run") if request.param == "s3" else f"file://{tmp_path}/store/run"


class Machines:
    """Which machine's cache is used."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch

    def use(self, name: str) -> None:
        self.monkeypatch.setenv("XDG_CACHE_HOME", str(self.folder / name))


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    made = Machines(tmp_path / "caches", monkeypatch)
    made.use("a")
    return made


def begun(address: str, session: str = "first") -> tuple[Mirror, WrittenRun]:
    """A run that is searched on this machine, of which the store has nothing yet."""
    mirror = Mirror(address)
    mirror.begin(session, say)
    mirror.folder.rmdir()
    return mirror, WrittenRun(mirror.folder)


def front(address: str) -> list[int]:
    return [point.trial for point in ac.load_run(address).front]


def test_a_run_is_the_same_on_another_machine(address: str, machines: Machines) -> None:
    mirror, run = begun(address)
    run.folder.taken_over.mkdir()  # of moves alone, without a file
    (run.folder.artifacts / "picture").write_bytes(b"png")
    (run.folder.trials / ".0009.tmp").mkdir()
    (run.folder.path / "damaged-0007").mkdir()
    mirror.push(check)
    here = run.result
    machines.use("b")
    result = ac.load_run(address)
    assert result.out != mirror.folder
    assert [point.trial for point in result.front] == [point.trial for point in here.front] == [1, 2, 3]
    assert result.to_json() == here.to_json()
    copied = {path.relative_to(result.out).as_posix() for path in result.out.rglob("*")} - {LOCK}
    assert "warm_start" in copied
    assert (result.out / "artifacts/picture").read_bytes() == b"png"
    assert copied == {
        name
        for path in mirror.folder.rglob("*")
        if "tmp" not in (name := path.relative_to(mirror.folder).as_posix()) and "damaged" not in name
    }
    # Long addresses are broken into lines.
    assert "".join(str(result).split()).startswith(f"Paretofrontof{result.address}accuracy")
    assert "s3cr" not in str(result.address)


def test_what_changes_here_changes_there_and_on_machines_that_read_it_again(
    address: str, machines: Machines
) -> None:
    mirror, run = begun(address)
    mirror.push(check)
    machines.use("b")
    assert front(address) == [1, 2, 3]
    held = ac.load_run(address)
    run.complete(BETTER, 0.945, 0.09, [])
    run.study.set_worth({3: True})
    remove_checkpoint(trial_folder(run.folder.trials, 3))
    mirror.push(check)
    assert front(address) == [1, 2, 7]
    assert not (held.out / "trials/0003").exists()
    # Of a result that was opened before, the study goes on.
    assert len(held.study.trials) == len(run.study.study.trials)
    assert not [name for name in RemoteStore(address).files() if name.startswith("trials/0003")]


def test_a_push_that_is_cut_off_anywhere_leaves_a_run_of_which_no_model_is_lost(
    address: str, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, run = begun(address)
    mirror.push(check)
    run.complete(BETTER, 0.945, 0.09, [])
    run.study.set_worth({3: True})
    remove_checkpoint(trial_folder(run.folder.trials, 3))
    calls = ("upload", "write", "remove", "remove_folder")
    real = {name: getattr(RemoteStore, name) for name in calls}
    left = 0

    def cut(name: str):
        def call(store: RemoteStore, *arguments: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise RemoteError("cut off")
            real[name](store, *arguments)

        return call

    fronts = []
    for done in range(100):
        left = done
        machines.use("a")
        with monkeypatch.context() as patched:
            for name in calls:
                patched.setattr(RemoteStore, name, cut(name))
            try:
                mirror.push(check)
            except RemoteError:
                ended = False
            else:
                ended = True
        machines.use(f"reader-{done}")
        fronts.append(front(address))
        if ended:
            break
    assert ended
    # Before the study tells of trial 7, its model and that of trial 3, whose place it takes, are both there.
    assert {tuple(numbers) for numbers in fronts} == {(1, 2, 3), (1, 2, 7)}
    assert fronts == sorted(fronts)


def test_a_search_that_went_on_elsewhere_goes_on_from_there_and_what_was_not_uploaded_is_kept_and_named(
    address: str, machines: Machines
) -> None:
    mirror, _ = begun(address)
    mirror.push(check)
    mirror.saved()
    machines.use("b")
    elsewhere = Mirror(address)
    elsewhere.begin("second", say)
    folder = RunFolder(elsewhere.folder)
    (folder.trials / "0008").mkdir()
    (folder.trials / "0008/manifest.json").write_text("{}")
    elsewhere.push(check)
    elsewhere.saved()
    machines.use("a")
    notes: list[str] = []
    mirror.begin("third", notes.append)
    assert (mirror.folder / "trials/0008").is_dir()
    assert notes == []
    # The third search is cut off before it uploaded a trial, and a fourth goes on elsewhere.
    (mirror.folder / "trials/0009").mkdir()
    machines.use("b")
    elsewhere.begin("fourth", say)
    assert (elsewhere.folder / "trials/0008").is_dir()
    elsewhere.push(check)
    machines.use("a")
    mirror.begin("fifth", notes.append)
    assert not (mirror.folder / "trials/0009").exists()
    assert "was continued elsewhere, or deleted; what a search here had not uploaded" in notes[0]
    aside = Path(notes[0].split("'")[-2])
    assert (aside / "trials/0009").is_dir()


def test_of_two_machines_that_made_a_trial_of_the_same_number_the_one_that_went_on_is_believed(
    address: str, machines: Machines
) -> None:
    def makes(mirror: Mirror, content: str) -> None:
        folder = mirror.folder / "trials/0007"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "manifest.json").write_text(content)
        (folder / "weights").write_text(content)
        mirror.push(check)

    mirror, _ = begun(address)
    makes(mirror, "[1]")
    machines.use("reader")
    assert (opened_run(address).trials / "0007/weights").read_text() == "[1]"
    machines.use("b")
    elsewhere = Mirror(address)
    elsewhere.begin("second", say)
    time.sleep(1.0)  # by which a store tells two files apart
    makes(elsewhere, "[2]")
    for name in ("reader", "a"):
        machines.use(name)
        assert (opened_run(address).trials / "0007/weights").read_text() == "[2]"


def test_a_copy_that_was_cut_off_goes_on_where_it_was(address: str, machines: Machines) -> None:
    mirror, run = begun(address)
    for uploaded in (False, True):
        if uploaded:
            mirror.push(check)
        run.complete(BETTER, 0.94 + uploaded / 100, 0.09, [])
        again = Mirror(address)
        again.begin(f"again-{uploaded}", say)
        assert again.folder == mirror.folder
        assert len(ac.load_run(address).study.trials) == 8 + uploaded
        mirror = again


def test_of_a_run_that_was_deleted_in_the_store_no_copy_is_taken_for_one(
    address: str, machines: Machines
) -> None:
    mirror, _ = begun(address)
    mirror.push(check)
    mirror.saved()
    for name in mirror.store.files():
        mirror.store.remove(name)
    with pytest.raises(ac.UsageError, match=r"RUN must be a folder that a search wrote but"):
        ac.load_run(address)
    assert not (mirror.folder / "run.json").exists()


def test_a_run_that_was_copied_to_a_store_by_hand_is_read_and_continued(
    address: str, machines: Machines, tmp_path: Path
) -> None:
    made = WrittenRun(tmp_path / "made")
    store = RemoteStore(address)
    for file in made.folder.path.rglob("*"):
        if file.is_file():
            store.upload(file, file.relative_to(made.folder.path).as_posix())
    assert front(address) == [1, 2, 3]
    mirror = Mirror(address)
    mirror.begin("first", say)
    mirror.push(check)
    machines.use("b")
    assert front(address) == [1, 2, 3]


@pytest.mark.parametrize("what", ["version", "no json", "no study", "no database"])
def test_a_run_that_cannot_be_read_is_refused_as_a_folder_is(
    what: str, machines: Machines, server: Server, tmp_path: Path
) -> None:
    address = server.address(f"{tmp_path.name}/run")
    mirror, run = begun(address)
    if what == "version":
        run.folder.json.write_text(json.dumps({"schema": 99}))
    if what == "no json":
        run.folder.json.write_text("nonsense")
    if what == "no study":
        run.folder.study.unlink()
    mirror.push(check)
    if what == "no database":
        mirror.store.write("study.db", b"nonsense" * 1000)
    machines.use("b")
    with pytest.raises(ac.UsageError) as there:
        ac.load_run(address)
    if what == "no database":
        run.folder.study.write_bytes(b"nonsense" * 1000)
    with pytest.raises(ac.UsageError) as here:
        ac.load_run(run.folder.path)
    shown = mirror.store.shown.partition("?")[0]
    assert "s3cr" not in str(there.value)
    if what != "no database":
        assert shown in str(there.value)
        named = str(there.value).replace(mirror.store.shown, shown).replace(shown, "RUN")
        assert named == str(here.value).replace(str(run.folder.path), "RUN")


def test_names_that_lead_out_of_the_run_are_left_where_they_are() -> None:
    names = ["trials/0001/manifest.json", "trials/0001/../../../x", "trials/0002/a", "other/manifest.json"]
    names += ["reference/manifest.json", "reference/.hidden", "warm_start/complete", "warm_start/0001/a"]
    assert _whole(names) == {
        "trials/0001": ["trials/0001/manifest.json"],
        "reference": ["reference/manifest.json"],
        "warm_start": ["warm_start/0001/a"],
    }


def test_a_copy_that_is_searched_here_is_left_to_the_search(address: str, machines: Machines) -> None:
    mirror, _ = begun(address)
    mirror.push(check)
    machines.use("b")
    opened = opened_run(address)
    shutil.rmtree(opened.reference)
    with FileLock(opened.path / LOCK):
        assert not opened_run(address).reference.exists()
    assert opened_run(address).reference.exists()


def test_a_copy_lies_in_tmpdir_where_the_cache_cannot_be_written(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    machines.monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(ac.UsageError, match=r"^XDG_CACHE_HOME must name a folder that can be written"):
        cache_folder()


def test_a_download_that_takes_long_is_told(
    address: str, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, _ = begun(address)
    mirror.push(check)
    machines.use("b")
    monkeypatch.setattr("autocompress.engine.mirror._SAY_SECONDS", 0.0)
    notes: list[str] = []
    opened_run(address, notes.append)
    assert all("downloading '" in note and note.endswith(" MB") for note in notes)
    assert "s3cr" not in "".join(notes)
    assert notes


def wait_until(true) -> None:
    while not true():
        time.sleep(0.05)


def test_a_store_that_fails_for_a_while_is_tried_again_and_one_that_fails_for_long_ends_the_search(
    address: str, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, run = begun(address)
    lock = RemoteLock(mirror.store)
    lock.take()
    notes: list[str] = []
    saver = Saver(mirror, lock, notes.append)
    real = RemoteStore.write

    def fails(store: RemoteStore, name: str, content: bytes) -> None:
        raise RemoteError("the network is down")

    monkeypatch.setattr(RemoteStore, "write", fails)
    saver.start()
    saver.changed()
    wait_until(lambda: notes)
    assert notes[0].startswith("the network is down; trying again")
    monkeypatch.setattr(RemoteStore, "write", real)
    wait_until(lambda: "run.json" in mirror.store.files())
    assert saver.error is None
    monkeypatch.setattr("autocompress.engine.saving.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(RemoteStore, "write", fails)
    run.complete(BETTER, 0.945, 0.09, [])
    saver.changed()
    wait_until(lambda: saver.error)
    assert isinstance(saver.error, ac.AutocompressError)
    assert str(saver.error) == (
        f"the network is down (everything that finished lies in '{mirror.folder}'; the same command on this "
        "machine goes on, and uploads it)"
    )
    saver.stop()


def test_a_search_whose_lock_another_took_ends_and_writes_no_more(
    address: str, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.remote.lock.BEAT_SECONDS", 0.0)
    mirror = Mirror(address)

    def search() -> None:
        with saving(mirror, say) as saver:
            assert saver is not None
            mirror.folder.rmdir()
            WrittenRun(mirror.folder)
            mirror.store.write("lock.json", json.dumps({"owner": "other"}).encode())
            wait_until(lambda: saver.error)
            saver.changed()

    with pytest.raises(
        ac.AutocompressError, match=r"has taken over .* the same command goes on with what the"
    ):
        search()
    assert set(mirror.store.files()) == {"lock.json"}
