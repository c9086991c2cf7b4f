from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from toprovar_fx.cli.output import check_writable, plan_files, print_json, write_file, write_png
from toprovar_fx.errors import OutputError


def test_one_file_or_a_folder(tmp_path: Path) -> None:
    assert plan_files(str(tmp_path / "a.png"), ["x"]) == [tmp_path / "a.png"]
    assert plan_files(str(tmp_path), ["x", "y"]) == [tmp_path / "x.png", tmp_path / "y.png"]
    assert plan_files(str(tmp_path / "new" / "deep"), ["x"]) == [tmp_path / "new" / "deep" / "x.png"]
    assert list(tmp_path.iterdir()) == []  # planning makes nothing


@pytest.mark.parametrize("out", ["a.jpg", "a.png"])
def test_a_wrong_destination_is_refused(tmp_path: Path, out: str) -> None:
    with pytest.raises(OutputError, match="expected"):
        plan_files(str(tmp_path / out), ["x", "y"])


def test_no_image_is_refused() -> None:
    with pytest.raises(OutputError, match="expected at least one"):
        plan_files(None, [])


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file, expected a folder"):
        plan_files(str(tmp_path / "file" / "below" / "a.png"), ["x"])


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
    else:  # the superuser writes everywhere, so the file system says no

        def refuse(**_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match="expected a writable folder: Permission denied"):
        check_writable(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def interrupted(file: IO[bytes]) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, interrupted)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("a.png")
    write_file(tmp_path / "link.png", lambda file: file.write(b"new"))
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "a.png").read_bytes() == b"new"


def test_a_device_or_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="it is a device or pipe, expected a file"):
        write_file(tmp_path / "pipe", lambda file: file.write(b"new"))
    assert (tmp_path / "pipe").is_fifo() and list(tmp_path.iterdir()) == [tmp_path / "pipe"]


def test_a_failed_write_is_an_output_error(tmp_path: Path) -> None:
    def full(file: IO[bytes]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_file(tmp_path / "a.png", full)
    assert list(tmp_path.iterdir()) == []


def test_png_round_trip_in_a_new_folder(tmp_path: Path) -> None:
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    path = tmp_path / "new" / "a.png"
    write_png(path, Image.fromarray(pixels))
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def test_json_is_strict_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"psnr_db": float("inf"), "list": [1, float("nan")], "nested": {0: (2.5, None)}})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"psnr_db": None, "list": [1, None], "nested": {"0": [2.5, None]}}


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
