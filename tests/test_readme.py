"""The documents' commands: those for the CPU are run, in order, in one copy of the repository; the others are checked.

The documents are README.md and docs/*.md, in this order; what a document's commands need, README.md's have made.

A ```python block is run after all others. A ```bash block is run unless a comment right above it says that it is not:

    <!-- gpu -->        it needs a GPU, or TensorRT
    <!-- network -->    it installs or downloads
    <!-- slow -->       it takes minutes, or data that is not here

Of those the scripts must exist and the flags must be the scripts' own. In the copy, the small files of tests/data stand
where download_squad.sh puts SQuAD, and what times engines runs a few times only.

What documents name must exist, too: links and headings, pictures, files in `code`, and all of a ```text block under
<!-- tree -->. So must the documents that comments and docstrings of the code name.
"""

import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_shell_scripts import download_model, error_of, scratch_tree, shell
from tests.web_server import Site, serve

#: Path from the repository's root → text.
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}

#: README.md is read to its end by those who only want to begin; the rest is in docs/.
LONGEST_README = 250

MARKS = ("gpu", "network", "slow")

#: Programs whose arguments are not ours to check.
FOREIGN = set("mkdir cp cd pushd popd source export pip cmake make jupyter git docker apt-get".split())

#: Appended where a script times or measures, so that it ends soon: the last of two equal flags counts.
SHORTER = {
    "perf.py": ("-i", "2", "-w", "1"),
    "perf_varseqlen.py": ("-i", "2", "-w", "1"),
}


_FENCE = re.compile(r"^ *```(?:bash|sh|shell|console)$", re.M)
_BLOCK = re.compile(r"(?:^ *<!-- *(\w+)[^>]*-->\n\s*)?^( *)```(?:bash|sh|shell|console)\n(.*?)^ *```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A ```bash block: its document, the line it begins at, the mark above it (None: it is run), its text."""

    document: str
    line: int
    mark: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.document} line {self.line}"


def blocks(document: str) -> list[Block]:
    found, content = [], DOCUMENTS[document]
    for match in _BLOCK.finditer(content):
        text = re.sub(f"^{match[2]}", "", match[3], flags=re.M)
        found.append(Block(document, content[: match.start(3)].count("\n"), match[1], text))
    return found


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def commands(text: str) -> list[list[str]]:
    """The commands of a block, each as its words."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in ("&&", "||", ";", "|", "&"):
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found


def test_the_reader_sees_all_blocks_and_commands():
    for document, content in DOCUMENTS.items():
        assert len(blocks(document)) == len(_FENCE.findall(content)), document
    assert len(BLOCKS) >= 25
    assert {block.mark for block in BLOCKS} <= {None, *MARKS}, "an unknown comment above a block"
    assert sum(block.mark is None for block in BLOCKS) >= 3
    text = "# note\nmkdir -p a && A=1 python3 x.py -p 'b && c' \\\n  -q d  # end\nmake $(which e); f"
    assert commands(text) == [
        *(["mkdir", "-p", "a"], ["A=1", "python3", "x.py", "-p", "b && c", "-q", "d"]),
        *(["make", "$(which", "e)"], ["f"]),
    ]


@pytest.fixture(scope="module")
def site():
    with serve(Site()) as site:
        yield site


@pytest.mark.sampled(0.4)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_commands_exist_and_have_these_flags(block, tmp_path, site):
    for words in commands(block.text):
        while words and re.match(r"\w+=", words[0]):
            words = words[1:]
        if words:
            check_command(words, tmp_path, site)


def check_command(words: list[str], tmp_path: Path, site: Site) -> None:
    program, *arguments = words
    if program in ("python3", "python") and arguments[0] in ("-m", "-c"):
        return
    if program in ("python3", "python"):
        parse_arguments(ROOT / arguments[0], arguments[1:])
    elif program == "bash":
        check_shell_script(Path(arguments[0]).name, arguments[1:], tmp_path, site)
    elif program == "build/perf":
        parse_arguments(ROOT / "perf.py", [word for word in arguments if word != "--enable_graph"])
    elif program == "pip":
        files = [after for flag, after in zip(arguments, arguments[1:]) if flag in ("-r", "--requirement")]
        assert arguments[0] == "install" and all((ROOT / name).is_file() for name in files)
    else:
        assert program in FOREIGN, f"nobody here knows how to check {program}"


def parse_arguments(script: Path, arguments: list[str]) -> None:
    """Let the script read its arguments; what it complains of fails the test."""
    spec = importlib.util.spec_from_file_location(f"readme_{script.stem.replace('-', '_')}", script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    try:
        module.parse(arguments)
    except SystemExit as error:
        assert error.code == 0, f"{script.name} refuses {arguments}"  # its line is in the captured stderr


def check_shell_script(name: str, arguments: list[str], tmp_path: Path, site: Site) -> None:
    if name in ("build.sh", "launch.sh", "inference_benchmark.sh"):
        arguments = ["Ampere" if word == "<arch>" else word for word in arguments]
        result = shell(ROOT / "scripts" / name, "--dry-run", *arguments)
        assert result.returncode == 0, result
    elif name in ("download_model.sh", "download_squad.sh") and "-h" not in arguments:
        tree = tmp_path / "a tree" if (tmp_path / "a tree").exists() else scratch_tree(tmp_path)
        if name == "download_model.sh":
            result = download_model(tree, site, " ".join(arguments))
        else:
            result = shell(tree / "scripts" / name, *arguments, DEMOBERT_SQUAD_URL=site.url)
        assert "is not there" in error_of(result)  # the words mean something; the site has nothing
    else:
        assert shell(ROOT / "scripts" / name, "-h").returncode == 0


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository without what git does not have, SQuAD's small stand-ins, and a python3 that shortens timings."""
    tree = tmp_path_factory.mktemp("readme") / "demobert"
    list_files = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            if name.startswith("models/"):
                (tree / name).symlink_to(ROOT / name)
            else:
                shutil.copy(ROOT / name, tree / name)
    for name, version in (("dev-v1.1", "1.1"), ("train-v1.1", "1.1"), ("dev-v2.0", "2.0"), ("train-v2.0", "2.0")):
        shutil.copy(ROOT / "tests" / "data" / f"squad_v{version}.json", tree / "squad" / f"{name}.json")
    programs = tree.parent / "bin"
    programs.mkdir()
    cases = "".join(f'    *{name}) set -- "$@" {" ".join(more)} ;;\n' for name, more in SHORTER.items())
    for name in ("python3", "python"):
        shim = programs / name
        shim.write_text(f'#!/bin/sh\ncase ${{1-}} in\n{cases}esac\nexec {shlex.quote(sys.executable)} "$@"\n')
        shim.chmod(0o755)
    return tree


def test_cpu_commands_run(copy):
    """All in one shell, from the first to the last: what one makes, the next ones use."""
    script = ["set -euo pipefail"]
    for block in BLOCKS:
        if block.mark is None:
            script += [f"echo '=== {block}' >&2", block.text]
    for content in DOCUMENTS.values():
        script += [
            f"python3 -c {shlex.quote(text)}" for text in re.findall(r"^```python\n(.*?)^```", content, re.M | re.S)
        ]
    path = f"{copy.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "VIRTUAL_ENV": sys.prefix}
    result = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=copy,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    print(result.stdout)


def test_readme_is_short():
    assert len(DOCUMENTS["README.md"].splitlines()) <= LONGEST_README


def without_code(content: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", content, flags=re.M | re.S)


def headings(content: str) -> set[str]:
    """The names by which links reach the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code(content), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_pictures_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(DOCUMENTS[document])):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        other = path.parent / name if name else path
        assert other.exists(), target
        assert not heading or heading in headings(other.read_text(encoding="utf-8")), target


def test_the_documents_lead_to_each_other():
    for document, content in DOCUMENTS.items():
        targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", content)}
        linked = {os.path.normpath(Path(document).parent / target) for target in targets}
        if document not in ("docs/cpu_benchmark.md", "docs/h200.md"):  # pages that benchmarks wrote
            others = {"README.md", *(f"docs/{name}.md" for name in ("accuracy", "architecture", "speed", "tensorrt"))}
            assert others - {document} <= linked, document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    """In `code`: files by their paths from the root, as the commands have them, or from the document's own folder."""
    folders = "scripts|helpers|squad|tests|infer_c|docs|models"
    pattern = rf"`((?:{folders})/(?:[\w.-]+/)*(?:[\w.-]+\.(?:py|sh|cpp|h|md))?|[a-z_]+\.(?:py|ipynb))`"
    assert re.fullmatch(pattern, "`scripts/test.sh`") and re.fullmatch(pattern, "`tests/tensorrt_double/`")
    named = set(re.findall(pattern, DOCUMENTS[document]))
    missing = [name for name in named if not any((at / name).exists() for at in (ROOT, (ROOT / document).parent))]
    assert not missing, "\n".join(sorted(missing))


def tree_paths(content: str) -> Iterator[str]:
    """The paths of the ```text blocks under <!-- tree -->: two spaces a level, names, two spaces or more, what it is."""
    for tree in re.findall(r"^<!-- tree -->\n```text\n(.*?)^```", content, re.M | re.S):
        folders: list[str] = []
        for line in tree.splitlines():
            names = re.split("  +", line.strip())[0].split(" ")
            del folders[(len(line) - len(line.lstrip())) // 2 :]
            yield from ("".join([*folders, name]) for name in names)
            folders += [name for name in names if name.endswith("/")]


@pytest.mark.parametrize("document", ("README.md", "docs/architecture.md"))
def test_the_tree_is_the_repository_s(document):
    paths = list(tree_paths(DOCUMENTS[document]))
    assert len(paths) > 15 and "helpers/weights/" in paths
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, "\n".join(missing)
    folders = {path for path in paths if (ROOT / path).is_dir()}
    assert all(path.endswith("/") for path in folders), "a folder without its slash"


def remarks(path: Path) -> str:
    """The comments and docstrings of a source file, as far as documents may be named in it."""
    text = path.read_text(encoding="utf-8")
    if ".md" not in text:
        return ""
    if path.suffix == ".py":
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        return "\n".join(
            token.string
            for token in tokens
            if token.type == tokenize.COMMENT
            or (token.type == tokenize.STRING and token.string.lstrip("r").startswith('"""'))
        )
    return "\n".join(re.findall("#.*" if path.suffix == ".sh" else "//.*", text))


def test_documents_that_the_code_names_exist():
    """A comment that names a document names README.md, or one of docs/ with or without its folder."""
    known = {*DOCUMENTS, *(Path(document).name for document in DOCUMENTS)}
    sources = [
        path
        for folder in ("helpers", "tests", "infer_c", "scripts", "squad")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".sh", ".cpp", ".h")
    ]
    sources += sorted(ROOT.glob("*.py"))
    assert len(sources) > 100
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources
        for name in re.findall(r"[\w./-]*\w\.md\b", remarks(path))
        if name not in known
    ]
    assert not wrong, "\n".join(wrong)
