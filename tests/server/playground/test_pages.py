"""The files of the pages: what is served, how, and that the wheel has them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dropless.server.playground import pages
from tests.server.server_process import ServerProcess

STATIC = Path(pages.__file__).parent / "static"
ROOT = Path(__file__).parents[3]
OURS = [path for path in STATIC.rglob("*") if path.is_file() and "vendor" not in path.parts]


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/dashboard", "text/html"),
        ("/playground/js/dom.js", "text/javascript"),
        ("/playground/css/base.css", "text/css"),
        ("/playground/favicon.svg", "image/svg+xml"),
        ("/playground/vendor/NOTICE", "text/plain"),
    ],
)
def test_files_have_types_and_guards(http: httpx.Client, path: str, kind: str) -> None:
    response = http.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "trusted-types 'none'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    again = http.get(path, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/playground/", 404),
        ("GET", "/playground/nothing.js", 404),
        ("GET", "/playground/../pages.py", 404),
        ("GET", "/playground/%2e%2e/pages.py", 404),
        ("GET", "/playground/..%2fpages.py", 404),
        ("GET", "/playground//etc/passwd", 404),
        ("POST", "/playground/js/dom.js", 405),
        ("POST", "/", 405),
    ],
)
def test_nothing_else_is_served(http: httpx.Client, method: str, path: str, status: int) -> None:
    url = http.base_url.copy_with(raw_path=path.encode())
    response = http.send(httpx.Request(method, url))
    assert response.status_code == status
    assert "error" in response.json()


def test_no_address_of_elsewhere_and_nothing_inline() -> None:
    """The policy would block it; a page that needs it would be broken."""
    for path in OURS:
        text = path.read_text()
        addresses = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
        assert not addresses, path
        assert "innerHTML" not in text.replace("no file here knows innerHTML", ""), path
        if path.suffix == ".html":
            assert not re.search(r"\bstyle=|\bon\w+=|<script(?![^>]*\bsrc=)", text), path


def test_every_import_is_a_file() -> None:
    for path in OURS:
        for target in re.findall(r'(?:from|import) "(\.[^"]+)"', path.read_text()):
            assert (path.parent / target).is_file(), f"{path.name} imports {target}"


def test_the_wheel_has_all_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    [wheel] = source.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(ROOT / "src").as_posix() for path in STATIC.rglob("*") if path.is_file()
    }
    assert len(files) > 50
    assert files <= names
