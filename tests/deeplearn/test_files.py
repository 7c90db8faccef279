import pytest

from deeplearn.errors import UserError
from deeplearn.files import replacing, writing


def test_the_old_file_stays_if_writing_fails(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise RuntimeError
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_the_suffix_is_kept(tmp_path):
    """Writers of pictures choose the format by it."""
    with replacing(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("")


def test_the_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "usual").write_text("")
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("path", ["/dev/full", "missing/a"])
def test_a_refusal_is_one_line(path, tmp_path):
    with pytest.raises(UserError, match=f"cannot write {path}: (No space left|No such file)") as error:
        with writing(path), open(path, "w") as file:
            file.write("x")
    assert "\n" not in str(error.value)


def test_no_directory(tmp_path):
    with pytest.raises(UserError, match="No such file"), replacing(tmp_path / "none" / "a") as temporary:
        temporary.write_text("")
