"""Writes a model repository for Triton: whole or not at all, and with all that its models need."""

import ast
import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePath

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer, engine_tokenizer
from helpers.backends import load_engine
from helpers.engine_card import EngineCard
from helpers.errors import ROOT, DemoBertError, UsageError, one_line
from scripts.serving import model_configs
from scripts.serving.contents import CONTENTS, Contents, read_contents
from scripts.serving.guide import guide
from scripts.serving.model_configs import PlanFacts, Serving

#: The engine's name in the version folder; its card and its tokenizer are beside it.
ENGINE = "bert.engine"

#: Of one version of each model.
VERSION = "1"

#: What runs the engines of each backend, as pip takes it.
_PACKAGES = {
    "openvino": ["openvino=={}"],
    "tensorrt": ["tensorrt=={}", "pycuda"],
    "tensorrt_rtx": ["tensorrt-rtx=={}", "pycuda"],
}

#: Questions that an instance on a CPU takes at once, of those that wait: it runs window by window anyway, and the other
#: instances and the clients would wait for those who took more.
CPU_BATCH = 4

#: Flags that are fields of `Serving`.
_SERVING_FLAGS = ("max_batch_size", "max_queue_delay", "max_queue_size", "max_passage")


@dataclass(frozen=True)
class Repository:
    """What is to be written: path from the root → bytes, or the file to copy; what its own list says of it."""

    files: dict[str, bytes | Path]
    contents: Contents

    def write(self, path) -> None:
        """Write it to the folder `path`, whole or not at all. Raises DemoBertError.

        A folder that is there is replaced if it is empty or an export of the same name to which nothing was added.
        """
        path = Path(path)
        check_target(path, self.contents.name)
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        except OSError as error:
            raise DemoBertError(f"can't write into {path.parent}: {error.strerror}") from error
        try:
            os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp's 0700 would hide it from a server's user
            for name, content in (self.files | {CONTENTS: self.contents.to_bytes()}).items():
                _write(temporary / name, content)
            _put(temporary, path)
        except OSError as error:
            raise DemoBertError(f"can't write {path}: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(path: Path, content: bytes | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def _put(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`; what was there is back where that fails, else removed."""
    old = new.with_suffix(".old")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def check_target(path: Path, name: str) -> None:
    """Raises DemoBertError unless an export of this name may be written to `path`."""
    if not path.parent.is_dir():
        raise DemoBertError(f"the folder {path.parent} does not exist; create it first")
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise DemoBertError(f"{path} is there, and is no folder: name another")
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink() or not file.is_dir()}
    # The models' processes leave Python's own files behind.
    found = {file for file in found if "__pycache__" not in PurePath(file).parts[:-1]}
    if not found:
        return
    if CONTENTS not in found:
        raise DemoBertError(f"{path} holds files that are no export of this script: name another folder")
    contents = read_contents(path)
    if contents.name != name:
        raise DemoBertError(f"{path} is an export under another --name: remove it, or name another folder")
    if added := sorted(found - set(contents.files)):
        raise DemoBertError(f"{path} is an export to which {one_line(added[0])} was added: name another folder")


def export(args, options: AnswerOptions) -> None:
    """Write what export_triton.py's arguments ask for, and say what it is. Raises DemoBertError."""
    check_target(Path(args.output), args.name)
    written = repository(args, options, cli.note)
    written.write(args.output)
    models = sorted({name.partition("/")[0] for name in written.files if name.endswith("config.pbtxt")})
    print(f"Repository: {args.output} ({', '.join(models)}); its README.md says how it is served and asked")


def repository(args, options: AnswerOptions, say) -> Repository:
    """What export_triton.py's arguments ask for. The engine is opened as the server will open it.

    Raises DemoBertError, UsageError.
    """
    engine = Path(args.engine)
    loaded = load_engine(engine, None, say=say)
    try:
        card, on_cpu = loaded.card, loaded.card.backend == "openvino"
        batch_size = options.batch_size or (1 if on_cpu else card.max_batch_size)
        options = dataclasses.replace(options, batch_size=batch_size)
        answerer = Answerer(loaded, engine_tokenizer(engine, card, say=say), options)
        plan = plan_facts(loaded) if args.tensorrt_backend else None
    finally:
        loaded.close()
    serving = Serving(
        name=args.name,
        kind="KIND_CPU" if on_cpu else "KIND_GPU",
        instances=args.instances or (2 if on_cpu and not args.latency else 1),
        batch_size=_preferred_batch_size(args, on_cpu),
        prepare_for="latency" if args.latency else "throughput",
        **{name: getattr(args, name) for name in _SERVING_FLAGS},
    )
    files = _question_answering(serving, card, answerer, plan)
    if plan:
        config, warm_up = model_configs.engine_model(serving, plan)
        files |= _model_files(config, warm_up) | {f"{serving.engine}/{VERSION}/model.plan": engine}
    else:
        files[f"{serving.question_answering}/{VERSION}/{ENGINE}"] = engine
    contents = _contents(serving, card, files, plan is not None)
    files["README.md"] = guide(serving, card, contents).encode("utf-8")
    return Repository(files, contents)


def _preferred_batch_size(args, on_cpu: bool) -> int | None:
    """Raises UsageError for more than may be taken."""
    asked, most = args.preferred_batch_size, args.max_batch_size
    if asked and asked > most:
        raise UsageError(f"--preferred-batch-size {asked} is over --max-batch-size {most}")
    return asked or (min(most, CPU_BATCH) if on_cpu else None)


def _contents(serving: Serving, card: EngineCard, files: dict, plan_by_triton: bool) -> Contents:
    """Raises DemoBertError for a card whose version is none: it becomes part of a command line."""
    if not re.fullmatch(r"[0-9A-Za-z.+]+", card.backend_version):
        raise DemoBertError(f"the engine card's backend_version is no version: {card.backend_version!r}")
    runs_engine = [package.format(card.backend_version) for package in _PACKAGES[card.backend]]
    plugins = []
    if plan_by_triton and card.network == "plugin":
        library = f"libnvinfer_plugin.so.{card.backend_version.partition('.')[0]}"
        plugins = [f"--backend-config=tensorrt,plugins={library}"]
    return Contents(
        name=serving.name,
        files=sorted([*files, "README.md", CONTENTS]),
        packages=["numpy", "tokenizers", *([] if plan_by_triton else runs_engine)],
        gpu=serving.kind == "KIND_GPU",
        arguments=plugins,
    )


def _question_answering(serving: Serving, card: EngineCard, answerer: Answerer, plan: PlanFacts | None) -> dict:
    """The files of the model that answers questions, but for the engine itself."""
    called = plan and plan.called(serving.engine)
    config, warm_up = model_configs.question_answering(serving, answerer.options, ENGINE, called)
    version = f"{serving.question_answering}/{VERSION}"
    engine = f"{version}/{ENGINE}"
    return {
        **_model_files(config, warm_up),
        f"{version}/model.py": ROOT / "helpers" / "serving" / "model.py",
        **{f"{version}/{name}": ROOT / name for name in needed(card.backend)},
        str(EngineCard.path_for(engine)): card.to_bytes(),
        str(EngineCard.tokenizer_path_for(engine)): answerer.tokenizer.json,
    }


def _model_files(config, warm_up: dict[str, bytes]) -> dict[str, bytes]:
    files = {f"{config.name}/config.pbtxt": model_configs.as_text(config)}
    return files | {f"{config.name}/warmup/{name}": data for name, data in warm_up.items()}


def plan_facts(engine) -> PlanFacts:
    """What Triton has to know of a loaded TensorRT engine. Raises UsageError for others."""
    if engine.card.backend != "tensorrt":
        raise UsageError(
            f"--tensorrt-backend: Triton runs TensorRT's plans so, and this engine is {engine.card.backend}'s"
        )
    session = engine.session
    names = (*session.inputs, model_configs.LOGITS)
    shapes = {name: tuple(session.engine.get_tensor_shape(name)) for name in names}
    return PlanFacts(session.layout, shapes, list(session.profiles))


def needed(backend: str) -> list[str]:
    """The files of helpers/ that the model needs with engines of `backend`, as paths from the repository's root."""
    waiting = ["helpers.serving.service", "helpers.serving.called_engine", f"helpers.backends.{backend}"]
    seen: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in seen or path is None:
            continue
        seen[name] = path
        waiting += [name.rpartition(".")[0], *_imported(path)]
    return sorted({path.relative_to(ROOT).as_posix() for path in seen.values()})


def _source(module: str) -> Path | None:
    place = ROOT.joinpath(*module.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def _imported(path: Path) -> list[str]:
    """The modules of helpers/ that a file imports, wherever it does."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.partition(".")[0] == "helpers"]
