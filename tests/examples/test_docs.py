"""The documentation: generated pages are those of today's code, every command and snippet runs, and Sphinx finds nothing to warn of."""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fabless.cli import run
from fabless.explore.study_file import parse

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROSE = ("tutorial.md", "how-it-works.md", "index.md")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text("utf-8"), re.S)


def generated():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def test_generated_pages_are_up_to_date():
    for name, content in generated().items():
        assert (DOCS / name).read_text("utf-8") == content, f"docs/{name} is not what the code says; run: python docs/generate.py"


def test_every_key_of_a_study_is_described():
    rows = [line for line in (DOCS / "study.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    for row in rows:
        assert row.rstrip(" |").split("| ")[-1].endswith((".", ".`")), row


def test_every_command_of_the_tutorial_runs(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = [line for block in blocks("tutorial.md", "sh") for line in block.splitlines() if line.startswith("fabless ")]
    assert len(commands) >= 7
    for command in commands:
        words = shlex.split(command)[1:]
        if words[0] == "design":  # the studies are run, reduced, by test_study_examples
            assert (ROOT / words[1]).is_file()
            continue
        assert run(words) == 0, command
        assert capsys.readouterr().out


@pytest.mark.parametrize("page", [*PROSE, "python.md"])
def test_every_python_snippet_runs(page, capsys):
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})
        assert capsys.readouterr().out


def test_every_change_that_the_tutorial_proposes_is_a_study():
    content = tomllib.loads((ROOT / "examples/chat.toml").read_text("utf-8"))
    changes = blocks("tutorial.md", "toml")
    assert len(changes) == 2
    for block in changes:
        for section, keys in tomllib.loads(block).items():
            content.setdefault(section, {}).update(keys)
    assert parse(content, "mine.toml").name == "patient"


@pytest.mark.parametrize("page", PROSE)
def test_every_file_and_function_that_prose_names_exists(page):
    text = (DOCS / page).read_text("utf-8")
    for path in re.findall(r"`((?:examples|docs|src|data)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or (ROOT / "src/fabless" / path).exists(), path
    for script in re.findall(r"python (examples/\S+\.py)", text):
        assert (ROOT / script).is_file()
    for dotted in re.findall(r"`(fabless(?:\.\w+)+)", text):
        parts = dotted.split(".")
        for n in range(len(parts), 0, -1):
            name = ".".join(parts[:n])
            try:
                thing = importlib.import_module(name)
            except ModuleNotFoundError:
                continue
            for rest in parts[n:]:
                thing = getattr(thing, rest)
            break


def test_sphinx_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="needs the docs extra: pip install '.[docs]'")
    pytest.importorskip("myst_parser", reason="needs the docs extra: pip install '.[docs]'")
    pytest.importorskip("furo", reason="needs the docs extra: pip install '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(DOCS), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ten minutes" in (tmp_path / "html/tutorial.html").read_text("utf-8").lower()
