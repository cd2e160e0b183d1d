"""Sources that read this machine: what counts as a document, what is left out and counted, what is refused early."""

import hashlib
import json
import sys
from pathlib import Path

import polars as pl
import pytest

from feeb_data.sources.files import FilesConfig
from feeb_data.sources.files.files import FilesSource
from feeb_data.sources.package import PackageConfig
from feeb_data.sources.package.package import PackageSource
from feeb_data.sources.stdlib import StdlibConfig
from feeb_data.sources.stdlib.stdlib import StdlibSource
from feebcore.errors import DataError, RecipeError
from feebcore.recipe import load


def read(folder: Path, *paths: str, **options: object) -> tuple[dict[str, str], dict[str, int]]:
    config = FilesConfig.model_validate({"paths": list(paths), **options}, context={"recipe_folder": folder})
    source = FilesSource(config)
    return {d.key: d.text for d in source.documents(folder)}, dict(source.skipped)


def test_stdlib_reads_every_module_and_its_tests_but_no_site_packages() -> None:
    source = StdlibSource(StdlibConfig())
    documents = {}
    for document in source.documents(Path()):
        documents[document.key] = document.text
        if len(documents) > 400:
            break
    assert documents["abc.py"] == Path(source.root / "abc.py").read_text()
    assert list(documents) == sorted(documents)
    keys = [p.relative_to(source.root).as_posix() for p in source._files()]
    assert len(keys) > 500
    assert not any("site-packages" in k or "pydoc_data" in k for k in keys)


def test_stdlib_respects_declared_encodings_and_counts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbfx = 1\n")
    (tmp_path / "bad.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "lying.py").write_bytes(b"# coding: no-such-codec\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "no.py").write_text("x")
    source = StdlibSource(StdlibConfig(), root=tmp_path)
    assert {d.key: d.text for d in source.documents(tmp_path)} == {"latin.py": "# -*- coding: latin-1 -*-\nx = 'é'\n", "bom.py": "x = 1\n"}
    assert dict(source.skipped) == {"not decodable as Python source": 2}


def test_stdlib_of_another_python_is_refused() -> None:
    assert StdlibConfig().version == ".".join(map(str, sys.version_info[:3]))
    with pytest.raises(ValueError, match=r"standard library of Python 2\.7\.18, this is"):
        StdlibConfig(version="2.7.18")


def test_files_reads_text_rows_and_globs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("alpha")
    (tmp_path / "sub" / "b.jsonl").write_text('{"body": "one"}\n\n{"body": null}\n{"body": "two"}\n')
    pl.DataFrame({"body": ["p", None, "q"]}).write_parquet(tmp_path / "sub" / "c.parquet")
    found, skipped = read(tmp_path, "sub", text_column="body")
    assert list(found.values()) == ["alpha", "one", "two", "p", "q"]
    assert list(found) == sorted(found)
    assert skipped == {"row without text": 2}
    assert read(tmp_path, "sub/*.txt")[0] == {"a.txt": "alpha"}
    assert read(tmp_path, "sub/a.txt", "sub/a.txt")[0] == {"a.txt": "alpha"}


def test_a_separator_splits_files_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feebcore.data.text_files.BLOCK", 5)
    (tmp_path / "t.txt").write_text("first<|endoftext|>second é<|endoftext|>third<|endoftext|>\n")
    assert list(read(tmp_path, "t.txt", separator="<|endoftext|>")[0].values()) == ["first", "second é", "third"]


def test_invalid_utf8_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("fine")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xff")
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    found, skipped = read(tmp_path, "good.txt", "bad.txt", "rows.jsonl")
    assert sorted(found.values()) == ["fine", "ok"]
    assert skipped == {"not UTF-8": 2}


def test_damaged_rows_name_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        read(tmp_path, "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"txt": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: no key 'text' \(text_column\); did you mean 'txt'"):
        read(tmp_path, "a.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        read(tmp_path, "a.parquet")
    pl.DataFrame({"text": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds Int64, not text"):
        read(tmp_path, "a.parquet")


def recipe(folder: Path, source: dict[str, object]) -> Path:
    path = folder / "r.yaml"
    path.write_text(json.dumps({"name": "r", "stages": ["download"], "download": {"sources": [source]}}))
    return path


def test_missing_files_and_packages_are_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("x")
    load(recipe(tmp_path, {"name": "files", "paths": ["there.txt"]}))
    with pytest.raises(RecipeError, match=r"nothing at .*gone\*\.txt; paths are relative to the recipe"):
        load(recipe(tmp_path, {"name": "files", "paths": ["there.txt", "gone*.txt"]}))
    with pytest.raises(RecipeError, match="no package 'no_such_package_here' is installed"):
        load(recipe(tmp_path, {"name": "package", "package": "no_such_package_here"}))
    with pytest.raises(RecipeError, match=r"no file of package 'zarr' matches \['\*\.xyz'\]"):
        load(recipe(tmp_path, {"name": "package", "package": "zarr", "files": ["*.xyz"]}))


def test_changed_contents_are_other_data_and_a_moved_recipe_is_not(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.txt").write_text("same")
    configs = [FilesConfig.model_validate({"paths": ["t.txt"]}, context={"recipe_folder": tmp_path / n}) for n in ("one", "two")]
    assert configs[0].content == configs[1].content
    (tmp_path / "one" / "t.txt").write_text("different")
    assert FilesConfig.model_validate({"paths": ["t.txt"]}, context={"recipe_folder": tmp_path / "one"}).content != configs[1].content


def test_package_reads_an_installed_package() -> None:
    config = PackageConfig(package="json", files=["*.py"])
    assert config.version.startswith("python-")
    documents = {d.key: d.text for d in PackageSource(config).documents(Path())}
    assert "json/decoder.py" in documents
    digest = hashlib.sha256(documents["json/decoder.py"].encode()).hexdigest()
    import json.decoder as module

    assert digest == hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="recipe wants json 0"):
        PackageConfig(package="json", version="0")


def test_a_url_with_a_password_is_refused_and_not_shown() -> None:
    from pydantic import ValidationError

    from feeb_data.sources.urls import UrlsConfig

    with pytest.raises(ValidationError, match="may not hold a user name or password"):
        UrlsConfig(urls=[{"url": "https://me:secret@example.org/x.txt"}])  # type: ignore[list-item]
