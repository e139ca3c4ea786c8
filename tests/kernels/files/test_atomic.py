import os

import numpy as np
import pytest

from ast_fast_kernels.files.atomic import atomic_folder, atomic_write, filled_folder


def _write_and_raise(path, error):
    path.write_text("half")
    raise error


def test_atomic_write_publishes_only_when_the_block_has_ended(tmp_path):
    target = tmp_path / "report.json"
    with atomic_write(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "whole"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_keeps_the_old_file_after_an_error(tmp_path, error):
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(error), atomic_write(target) as temporary:
        _write_and_raise(temporary, error())
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_atomic_write_names_a_file_that_np_save_leaves_alone(tmp_path):
    with atomic_write(tmp_path / "a.npy") as temporary:
        np.save(temporary, np.arange(3))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["a.npy"]


def test_atomic_write_fails_when_the_block_wrote_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_atomic_write_follows_the_umask_as_a_plain_open_does(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "atomic") as temporary:
        temporary.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_atomic_folder_publishes_nested_files_at_once(tmp_path):
    target = tmp_path / "set"
    with atomic_folder(target) as temporary:
        (temporary / "audio").mkdir()
        (temporary / "audio" / "a.wav").write_text("a")
        assert not target.exists()
    assert (target / "audio" / "a.wav").read_text() == "a"
    assert os.listdir(tmp_path) == ["set"]


def test_atomic_folder_replaces_an_old_folder_whole(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old").write_text("")
    with atomic_folder(target) as temporary:
        (temporary / "new").write_text("")
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["set"]


def test_atomic_folder_keeps_the_old_folder_after_an_error(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(ValueError, match="stop"), atomic_folder(target) as temporary:
        _write_and_raise(temporary / "new", ValueError("stop"))
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize("is_there", [False, True])
def test_filled_folder_takes_all_or_nothing(tmp_path, is_there):
    target = tmp_path / "deeper" / "run"
    if is_there:
        target.mkdir(parents=True)
    with pytest.raises(ValueError, match="half"), filled_folder(target) as temporary:
        _write_and_raise(temporary / "a", ValueError("half"))
    assert target.exists() == is_there
    with filled_folder(target) as temporary:
        for name in "ab":
            (temporary / name).write_text(name)
        assert os.listdir(target) == [temporary.name]
    assert sorted(os.listdir(target)) == ["a", "b"]
