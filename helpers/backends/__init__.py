"""Choosing a backend, writing an engine with its card, loading an engine.

A backend is a module with

    usable() -> (bool, str)                     does it run on this machine, and if not, why
    prepare(config, options) -> Prepared        can it be built: device, plugins, options, before weights are read
    load(path, card, throughput) -> Engine      card None: guess one from the file itself
    recognises(path) -> bool                    does a file without a card begin like one of its engines
    IGNORED_OPTIONS                             field of BuildOptions → why it changes nothing here
"""

import hashlib
import importlib
from pathlib import Path

from helpers.backends.base import BuiltEngine, Engine
from helpers.bert_config import BertConfig
from helpers.build_options import BACKENDS, BuildOptions
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError
from helpers.files import require_file, sha256_of, write_together
from helpers.tokenization import Tokenizer


def backend_module(name: str):
    """The module of backend `name`. Heavy packages are imported by its functions, not by this."""
    if name not in BACKENDS:
        raise DemoBertError(f"there is no backend {name!r} here (there is: {', '.join(BACKENDS)})")
    return importlib.import_module(f"helpers.backends.{name}")


def choose_backend(asked: str) -> tuple[str, str]:
    """The backend that `--backend` asks for, and the reason, for people: ("openvino", "no NVIDIA GPU…")."""
    if asked != "auto":
        return asked, "asked for"
    reasons = []
    for name in ("tensorrt", "openvino"):
        usable, reason = backend_module(name).usable()
        reasons.append(reason)
        if usable:
            return name, "; ".join(reasons)
    raise DemoBertError(f"no backend can run here: {'; '.join(reasons)}")


def write_engine(
    path,
    built: BuiltEngine,
    backend: str,
    options: BuildOptions,
    config: BertConfig,
    tokenizer: Tokenizer | None = None,
) -> EngineCard:
    """Write the engine, its card and its tokenizer, all of them or none; returns the card. Raises DemoBertError.

    Without a tokenizer an older one is removed.
    """
    card = EngineCard(
        backend=backend,
        backend_version=built.backend_version,
        device=built.device,
        layout=options.layout,
        network=built.network,
        precision=built.precision,
        batch_sizes=list(options.batch_sizes),
        sequence_lengths=list(options.sequence_lengths),
        config=config,
        tokenizer_sha256=tokenizer.sha256 if tokenizer else None,
        engine_sha256=hashlib.sha256(built.data).hexdigest(),
        engine_bytes=len(built.data),
        settings=built.settings,
    )
    files = {
        EngineCard.tokenizer_path_for(path): tokenizer.json if tokenizer else None,
        path: built.data,
        EngineCard.path_for(path): card.to_bytes(),
    }
    write_together(files)
    return card


def load_engine(path, layout: str | None, throughput: bool = False, say=lambda message: None) -> Engine:
    """Load an engine and hold it against its card. Raises DemoBertError where anything does not fit.

    `layout` is what the caller can feed it: "padded" or "packed"; None: either. `throughput` prepares for
    `Engine.submit`.
    `say` is told, in one line, what had to be guessed where there is no card.
    """
    path = require_file(path, "engine")
    card_path = EngineCard.path_for(path)
    if card_path.exists():
        card = EngineCard.read(card_path)
        _check_pair(path, card)
        engine = backend_module(card.backend).load(path, card, throughput)
    else:
        engine = _load_without_card(path, throughput)
        say(without_card(card_path, engine.card))
    if layout not in (None, engine.card.layout):
        script = "inference_varseqlen.py or perf_varseqlen.py" if layout == "padded" else "inference.py or perf.py"
        raise DemoBertError(f"{path} is a {engine.card.layout} engine, run it with {script}")
    return engine


def _check_pair(path: Path, card: EngineCard) -> None:
    size = path.stat().st_size
    if size != card.engine_bytes:
        raise DemoBertError(
            f"{path} has {size} bytes, its card says {card.engine_bytes}: it is truncated or another engine; "
            "build it again"
        )
    if sha256_of(path) != card.engine_sha256:
        raise DemoBertError(f"{path} is not the engine that its card describes, or is damaged; build it again")


def _load_without_card(path: Path, throughput: bool) -> Engine:
    for name in BACKENDS:
        module = backend_module(name)
        if module.recognises(path):
            return module.load(path, None, throughput)
    raise DemoBertError(
        f"{path} is not an engine of any backend here ({', '.join(BACKENDS)}); build one with builder.py"
    )


def without_card(card_path: Path, card: EngineCard) -> str:
    """What had to be guessed of an engine without a card file, in one line."""
    return (
        f"no engine card {card_path}; read from the engine or guessed: backend {card.backend}, {card.layout}, {'+'.join(card.precision)}, batch size up to {card.max_batch_size}, "
        f"sequence length up to {card.max_sequence_length}"
    )
