"""Versions and the commit that made a result."""

from __future__ import annotations

import importlib.metadata
import subprocess

from model import provenance
from model.provenance import git_commit, package_versions


def test_versions_of_installed_packages_are_found_and_others_left_out():
    versions = package_versions(["numpy", "no-such-package-as-this", "pillow"])
    assert versions == {name: importlib.metadata.version(name) for name in ("numpy", "pillow")}


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_tree_around_the_module(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "model" / "provenance.py"))
    commit = git_commit()
    assert commit == git(tmp_path, "rev-parse", "HEAD")
    assert len(commit) == 40


def test_outside_of_a_checkout_there_is_no_commit(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert git_commit() is None
    assert capfd.readouterr().err == ""


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None
