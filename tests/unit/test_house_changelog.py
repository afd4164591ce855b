"""The changelog, the version and the licence agree with the package."""

import configparser
import re
from pathlib import Path

import memplan

ROOT = Path(__file__).parents[2]
ORDER = ["Security", "Added", "Changed", "Deprecated", "Removed", "Fixed"]


def _sections():
    """Return the changelog's versions, newest first, each with its headings."""
    text = (ROOT / "CHANGELOG.md").read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return {
        title: re.findall(r"^### (.+)$", body, flags=re.MULTILINE)
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_the_newest_section_is_about_the_present_version():
    """A version that nobody can read about is not released."""
    newest = next(iter(_sections()))

    assert re.fullmatch(rf"{memplan.__version__} \((unreleased|\d{{4}}-\d\d-\d\d)\)", newest)


def test_each_section_keeps_the_order_of_headings():
    """Readers find removals in the same place in every version."""
    for headings in _sections().values():
        assert [name for name in ORDER if name in headings] == headings


def test_every_direct_dependency_is_pinned():
    """constraints.txt names each package of setup.cfg with one exact version."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    wanted = {re.split(r"[ ><=\[]", line)[0].lower() for text in lists for line in text.split("\n")}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]

    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", pin) for pin in pins)
    own = {"", "memplan"}  # an extra that takes others names the package itself
    assert wanted - own <= {pin.split("==")[0] for pin in pins}


def test_every_package_folder_is_installed():
    """setup.cfg lists each package, so that a wheel misses none."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("memplan", "models")
        for path in (ROOT / folder).rglob("__init__.py")
    }

    assert {re.sub(r"^models\b", "memplan_models", name) for name in found} == listed


def test_the_licence_is_apache_2():
    """The licence file holds the full text and names the authors."""
    text = (ROOT / "LICENSE").read_text()

    assert "Version 2.0, January 2004" in text
    assert "The memplan authors" in text


def test_test_files_have_names_of_their_own():
    """Tests are no packages, so pytest tells files apart by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]

    assert sorted(set(names)) == sorted(names)
