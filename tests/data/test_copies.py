import os

from vae.data.copies import find_copies


def test_files_of_the_same_content_are_found(tmp_path):
    contents = {"a": b"same", "b": b"emas", "c": b"same", "d": b"other", "e": b"", "f": b"",
                "g": b"emas", "h": b"same"}  # fmt: skip
    files = {name: tmp_path / name for name in contents}
    for name, path in files.items():
        path.write_bytes(contents[name])
    files["gone"] = tmp_path / "gone"
    (tmp_path / "link").symlink_to(tmp_path / "d")
    files["link"] = tmp_path / "link"
    assert sorted(find_copies(files)) == [["a", "c", "h"], ["b", "g"], ["d", "link"]]


def test_large_files_are_compared_to_their_end(tmp_path):
    content = os.urandom(3 << 20)
    files = {name: tmp_path / name for name in "abc"}
    for name, last in zip("abc", (b"1", b"2", b"1"), strict=True):
        files[name].write_bytes(content + last)
    assert find_copies(files) == [["a", "c"]]
