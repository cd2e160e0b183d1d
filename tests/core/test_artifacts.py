"""Artifacts: commit, reuse, damage, locks, import and gc."""

import json
import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest

from feebcore.artifacts import Artifact, StageOutput, Workspace, commit, read_artifact
from feebcore.errors import ArtifactError, FeebError, UnknownPartError, UsageError
from feebcore.files import locked, read_json, read_jsonl, write_atomic


def make(workspace: Workspace, stage="numbers", name="demo", fingerprint="aaaaaaaaaaaa", inputs=None, files=None, patterns=()) -> Artifact:
    with workspace.building(stage, name, fingerprint) as place:
        assert isinstance(place, Path)
        for name, text in (files or {"numbers.txt": "1 2 3"}).items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        out = StageOutput(place)
        out.content(*patterns)
        out.event("begin")
        out.close()
        return commit(out, stage=stage, name=name, fingerprint=fingerprint, identity={"section": {}}, metrics={"n": 3}, section={}, inputs=inputs or {}, plugins=[], environment={}, started=time.time())  # fmt: skip


def test_a_folder_without_a_manifest_is_unfinished(tmp_path):
    workspace = Workspace(tmp_path)
    with workspace.building("numbers", "demo", "a" * 12) as place:
        (place / "half.txt").write_text("x")
    assert workspace.find("numbers", "a" * 12) is None
    with workspace.building("numbers", "other-name", "a" * 12) as again:
        assert again == place


def test_a_finished_artifact_is_found_whatever_its_name(tmp_path):
    workspace = Workspace(tmp_path)
    artifact = make(workspace)
    with workspace.building("numbers", "other", artifact.fingerprint) as place:
        assert isinstance(place, Artifact)
        assert place.path == artifact.path


def test_digest_is_of_content_not_of_logs_or_time(tmp_path):
    one = make(Workspace(tmp_path / "a"), files={"x.txt": "1", "metrics.jsonl": "{}"})
    two = make(Workspace(tmp_path / "b"), files={"x.txt": "1", "metrics.jsonl": "{ }"})
    three = make(Workspace(tmp_path / "c"), files={"x.txt": "2", "metrics.jsonl": "{}"})
    assert one.digest == two.digest != three.digest


def test_patterns_choose_what_the_digest_covers(tmp_path):
    one = make(Workspace(tmp_path / "a"), files={"model/w": "1", "note": "a"}, patterns=("model/*",))
    two = make(Workspace(tmp_path / "b"), files={"model/w": "1", "note": "b"}, patterns=("model/*",))
    assert one.digest == two.digest


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_missing_or_truncated_file_is_seen_when_the_artifact_is_opened(tmp_path, damage):
    workspace = Workspace(tmp_path)
    artifact = make(workspace)
    file = artifact.path / "numbers.txt"
    file.unlink() if damage == "remove" else file.write_text("1")
    with pytest.raises(ArtifactError, match=r"numbers.txt"):
        workspace.find("numbers", artifact.fingerprint)


def test_verify_sees_a_change_that_keeps_the_size(tmp_path):
    artifact = make(Workspace(tmp_path))
    assert artifact.verify() == []
    (artifact.path / "numbers.txt").write_text("9 9 9")
    assert artifact.verify() == ["numbers.txt"]
    with pytest.raises(ArtifactError, match="was altered"):
        artifact.check_hash("numbers.txt")


def test_a_damaged_manifest_names_itself(tmp_path):
    artifact = make(Workspace(tmp_path))
    (artifact.path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged .*; remove .* and run the recipe again"):
        read_artifact(artifact.path)


def test_json_that_is_no_manifest_is_named(tmp_path):
    artifact = make(Workspace(tmp_path))
    (artifact.path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged .*; remove .* and run the recipe again"):
        list(Workspace(tmp_path).all())


def test_a_folder_that_a_kill_left_half_written_is_no_part_of_the_artifact(tmp_path):
    (tmp_path / "numbers" / f"toy-{'a' * 12}" / ".model.123.tmp").mkdir(parents=True)
    (tmp_path / "numbers" / f"toy-{'a' * 12}" / ".model.123.tmp" / "model.safetensors").write_text("half")
    artifact = make(Workspace(tmp_path), name="toy", fingerprint="a" * 12, files={"x": "1"})
    assert ".model.123.tmp/model.safetensors" not in artifact.manifest["files"]
    assert artifact.digest == make(Workspace(tmp_path / "other"), fingerprint="a" * 12, files={"x": "1"}).digest


def test_a_manifest_of_a_newer_feeb_is_refused(tmp_path):
    artifact = make(Workspace(tmp_path))
    manifest = dict(artifact.manifest) | {"schema": 99}
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="newer feeb"):
        read_artifact(artifact.path)


@pytest.mark.parametrize("schema", [1, 0])
def test_a_manifest_of_an_older_feeb_is_refused_by_number(tmp_path, schema):
    artifact = make(Workspace(tmp_path))
    (artifact.path / "manifest.json").write_text(json.dumps({"schema": schema, "stage": "numbers", "label": "demo"}))
    with pytest.raises(ArtifactError, match=f"has schema {schema} and this feeb reads 2"):
        read_artifact(artifact.path)


def _hold(path, ready, release):
    with locked(path):
        ready.set()
        release.wait(20)


def test_a_second_builder_waits_and_says_so(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    path = tmp_path / "x.lock"
    process = context.Process(target=_hold, args=(path, ready, release))
    process.start()
    assert ready.wait(20)
    said = []

    def waiting(text):
        said.append(text)
        release.set()

    with locked(path, waiting, poll=0.01):
        assert said == [f"another process (pid {process.pid}) is building this; waiting for it"]
    process.join()


def test_a_lock_dies_with_its_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "x.lock", ready, release))
    process.start()
    assert ready.wait(20)
    process.kill()
    process.join()
    with locked(tmp_path / "x.lock", lambda text: pytest.fail("still locked")):
        pass


def test_import_takes_data_made_elsewhere(tmp_path):
    source = tmp_path / "mine"
    source.mkdir()
    (source / "documents.parquet").write_bytes(b"123")
    workspace = Workspace(tmp_path / "w")
    artifact = workspace.import_folder(source, "download", "mine", "from a friend")
    assert workspace.import_folder(source, "download", "mine").path == artifact.path
    assert (source / "documents.parquet").exists()
    with pytest.raises(ArtifactError, match="not a folder with files"):
        workspace.import_folder(tmp_path / "nothing", "download", "x")
    assert artifact.makes == ("documents",)


@pytest.mark.parametrize("name", ["../../esc", "a/b", "..", ".hidden", "", "/etc/x"])
def test_an_import_cannot_leave_the_workspace(tmp_path, name):
    source = tmp_path / "mine"
    source.mkdir()
    (source / "documents.parquet").write_bytes(b"123")
    with pytest.raises(ArtifactError, match="cannot name an artifact"):
        Workspace(tmp_path / "w").import_folder(source, "download", name)
    with pytest.raises(UnknownPartError, match="did you mean 'download'"):
        Workspace(tmp_path / "w").import_folder(source, "downlaod", "x")
    with pytest.raises(UnknownPartError, match="no part"):
        Workspace(tmp_path / "w").import_folder(source, "../../download", "x")
    assert not (tmp_path / "w").exists()


def test_an_import_needs_the_files_of_what_its_stage_makes(tmp_path):
    source = tmp_path / "mine"
    source.mkdir()
    (source / "weights.bin").write_bytes(b"123")
    with pytest.raises(ArtifactError, match=r"stage pretrain makes model, so it must have model/model.json; it has weights.bin"):
        Workspace(tmp_path / "w").import_folder(source, "pretrain", "x")


def test_gc_takes_unfinished_and_superseded_but_nothing_that_is_referred_to(tmp_path):
    workspace = Workspace(tmp_path)
    old = make(workspace, fingerprint="a" * 12, files={"x": "old"})
    time.sleep(0.01)
    lone = make(workspace, fingerprint="d" * 12, files={"x": "lone"})
    time.sleep(0.01)
    new = make(workspace, fingerprint="b" * 12, files={"x": "new"})
    user = make(workspace, stage="sums", fingerprint="c" * 12, inputs={"numbers": old})
    with workspace.building("numbers", "half", "e" * 12) as half:
        (half / "request.json").write_text("{}")
    assert workspace.gc(dry_run=True) == [half]
    assert set(workspace.gc(superseded=True)) == {half, lone.path}
    assert old.path.exists()
    assert new.path.exists()
    assert user.path.exists()
    assert not half.exists()


def test_gc_leaves_what_is_being_built(tmp_path):
    workspace = Workspace(tmp_path)
    with workspace.building("numbers", "half", "e" * 12) as half:
        (half / "request.json").write_text("{}")
        assert workspace.gc() == []


def test_gc_removes_a_link_and_not_what_it_points_to(tmp_path):
    workspace, elsewhere = Workspace(tmp_path / "w"), tmp_path / "big-disk"
    elsewhere.mkdir()
    (elsewhere / "request.json").write_text("{}")
    (tmp_path / "w" / "numbers").mkdir(parents=True)
    link = tmp_path / "w" / "numbers" / f"demo-{'e' * 12}"
    link.symlink_to(elsewhere)
    assert workspace.gc() == [link]
    assert (elsewhere / "request.json").exists()
    assert list((tmp_path / "w" / "numbers").iterdir()) == []


def test_gc_leaves_the_inputs_of_what_is_being_built(tmp_path):
    workspace = Workspace(tmp_path)
    old = make(workspace, fingerprint="a" * 12, files={"x": "old"})
    time.sleep(0.01)
    make(workspace, fingerprint="b" * 12, files={"x": "new"})
    with workspace.building("sums", "half", "e" * 12) as half:
        (half / "request.json").write_text(json.dumps({"inputs": {"numbers": str(old.path)}}))
        assert workspace.gc(superseded=True) == []
    assert set(workspace.gc(superseded=True)) == {half, old.path}


def test_gc_leaves_what_was_taken_up_after_it_was_listed(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    with workspace.building("numbers", "half", "e" * 12) as half:
        (half / "request.json").write_text("{}")
    listed = workspace.unreferenced()
    monkeypatch.setattr(workspace, "unreferenced", lambda keep_days: listed)
    with workspace.building("numbers", "half", "e" * 12):
        assert workspace.gc() == []
    assert half.exists()


def test_write_atomic_leaves_the_old_file_when_the_disk_is_full(tmp_path, small_disk):
    file = small_disk / "x.json"
    write_atomic(file, "old")
    with pytest.raises(ArtifactError, match="the disk is full"):
        write_atomic(file, "n" * 4_000_000)
    assert file.read_text() == "old"
    assert os.listdir(small_disk) == ["x.json"]


def test_a_read_only_workspace_is_named(tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    workspace = Workspace(small_disk / "data")
    with pytest.raises(ArtifactError, match="choose another workspace"), workspace.building("numbers", "x", "a" * 12):
        pass


def test_a_row_cut_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_jsonl(tmp_path / "m.jsonl") == [{"a": 1}, {"a": 2}]


def test_an_event_after_a_line_that_a_kill_cut_is_kept(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"kind": "begin", "time": 1}\n{"kind": "prog')
    out = StageOutput(tmp_path)
    out.event("begin")
    out.close()
    assert [row["kind"] for row in read_jsonl(tmp_path / "events.jsonl")] == ["begin", "begin"]


def test_gc_clears_what_a_killed_gc_left(tmp_path):
    left = tmp_path / "numbers" / ".trash-demo-aaaaaaaaaaaa"
    left.mkdir(parents=True)
    (left / "x").write_text("x")
    Workspace(tmp_path).gc()
    assert not left.exists()


@pytest.mark.parametrize(("manifest", "problem"), [("{", "is damaged"), ('{"schema": 1, "stage": "sums"}', "has schema 1 and this feeb reads 2")])
def test_one_unreadable_manifest_is_named_and_does_not_hide_the_rest(tmp_path, capsys, manifest, problem):
    from feeb_pipelines.cli import run_command

    workspace = Workspace(tmp_path)
    used, lone, good = (make(workspace, fingerprint=letter * 12, files={"x": letter}) for letter in "abc")
    bad = make(workspace, stage="sums", fingerprint="d" * 12)
    (bad.path / "manifest.json").write_text(manifest)
    (bad.path / "request.json").write_text(json.dumps({"inputs": {"numbers": f"/where/it/was/once/{used.path.parent.name}/{used.path.name}"}}))
    where = ["--workspace", str(tmp_path)]
    assert run_command(["runs", "--json", *where]) == 0
    rows = {r["path"]: (r["status"], r["reason"]) for r in json.loads(capsys.readouterr().out)}
    assert {rows.pop(str(a.path)) for a in (used, lone, good)} == {("finished", "")}
    assert rows[str(bad.path)][0] == "damaged"
    assert problem in rows[str(bad.path)][1]
    assert f"remove {bad.path} and run the recipe again" in rows[str(bad.path)][1]
    assert run_command(["artifacts", "verify", "--json", *where]) == 1
    assert {r["path"]: r["problem"] for r in json.loads(capsys.readouterr().out) if r["bad"]} == {str(bad.path): rows[str(bad.path)][1]}
    assert run_command(["artifacts", "gc", "--superseded", "--yes", *where]) == 0
    out, err = capsys.readouterr()
    assert out == f"removed {lone.path}\n"
    assert err == f"feeb: {rows[str(bad.path)][1]}\n"
    assert used.path.exists(), "what the unreadable one was made of"


def test_the_workspace_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEEB_WORKSPACE", "~/ws")
    assert Workspace().root == tmp_path / "ws"
    assert Workspace("./~").root == Path("~").absolute()
    with pytest.raises(FeebError, match="there is no home folder of that name"):
        Workspace("~no-such-user-here/ws")


def test_a_workspace_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, what in {"file": "file is a file", "file/below": "file is a file", "link": "link is a link that", "loop": "loop is a link that"}.items():
        with pytest.raises(UsageError, match=f"the workspace .* cannot be a folder: .*/{what}.*; choose another"):
            Workspace(tmp_path / name)


def test_a_folder_in_the_place_of_a_manifest_is_damage(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged \(it is a folder"):
        read_json(tmp_path / "manifest.json")


def test_an_error_of_the_disk_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(tmp_path / "nowhere/a.json", "{}")
    assert caught.value.filename == str(tmp_path / "nowhere/a.json")
