"""Choosing a backend, writing an engine with its card, loading an engine.

A backend is a module with

    usable() -> (bool, str)                     does it run on this machine, and if not, why
    prepare(config, options) -> Prepared        can it be built: device, plugins, options, before weights are read
    load(path, card, throughput, config) -> Engine
                                                card None: the file itself tells it, and `config` what it does not
    recognises(path) -> bool                    does a file without a card begin like one of its engines
    IGNORED_OPTIONS                             field of BuildOptions → why it changes nothing here
"""

import hashlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path

from helpers.backends.base import BuiltEngine, Engine
from helpers.bert_config import BertConfig
from helpers.build_options import BACKENDS, BuildOptions
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError
from helpers.files import require_file, sha256_of
from helpers.outputs import finish_pending, write_together
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
    contents = tokenizer.json if tokenizer else None, built.data, card.to_bytes()
    write_together(dict(zip(EngineCard.set_of(path), contents)), main=path)
    return card


def load_engine(
    path,
    layout: str | None,
    throughput: bool = False,
    say: Callable[[str], object] = lambda message: None,
    trust_engine: bool = False,
    config_dir=None,
) -> Engine:
    """Load an engine and hold it against its card. Raises DemoBertError where anything does not fit.

    layout        what the caller can feed it: "padded" or "packed"; None: either
    throughput    prepare for `Engine.submit`
    say           is told, in one line, what an engine without a card is taken for
    trust_engine  load it although it has no card: what is in it is run
    config_dir    the folder of such an engine's model, which tells the sizes of its tables
    """
    path, card = Path(path), card_of(path, say, trust_engine, config_dir)
    if card is not None:
        _check_pair(path, card)
        engine = backend_module(card.backend).load(path, card, throughput)
    else:
        config = None if config_dir is None else BertConfig.from_folder(config_dir)
        engine = backend_module(_backend_of(path)).load(path, None, throughput, config)
        say(without_card(path, engine.card))
    if layout not in (None, engine.card.layout):
        script = "inference_varseqlen.py or perf_varseqlen.py" if layout == "padded" else "inference.py or perf.py"
        raise DemoBertError(f"{path} is a {engine.card.layout} engine, run it with {script}")
    return engine


def card_of(path, say: Callable[[str], object], trust_engine: bool = False, config_dir=None) -> EngineCard | None:
    """The engine's card; None: it has none, and is trusted. Raises DemoBertError where it has none, and is not."""
    finish_pending(path, EngineCard.set_of(path))
    card_path = EngineCard.path_for(require_file(path, "engine"))
    if not os.path.exists(card_path):
        if not trust_engine:
            raise DemoBertError(
                f"{path} has no engine card ({card_path}): loading an engine runs what is in it; copy its card beside "
                "it, or, if you built it yourself, pass --trust-engine"
            )
        return None
    if config_dir is not None:
        raise UsageError("-c has no effect: the engine has its card")
    if trust_engine:
        say("Note: --trust-engine has no effect: the engine has its card")
    return EngineCard.read(card_path)


def _check_pair(path: Path, card: EngineCard) -> None:
    size = path.stat().st_size
    if size != card.engine_bytes:
        raise DemoBertError(
            f"{path} has {size} bytes, its card says {card.engine_bytes}: it is truncated or another engine; "
            "build it again"
        )
    if sha256_of(path) != card.engine_sha256:
        raise DemoBertError(f"{path} is not the engine that its card describes, or is damaged; build it again")


def _backend_of(path: Path) -> str:
    for name in BACKENDS:
        if backend_module(name).recognises(path):
            return name
    raise DemoBertError(
        f"{path} is not an engine of any backend here ({', '.join(BACKENDS)}); build one with builder.py"
    )


def without_card(path, card: EngineCard) -> str:
    """What an engine without a card file is taken for, in one line."""
    return (
        f"no engine card {EngineCard.path_for(path)}; the engine itself tells: {card.backend}, {card.layout}, "
        f"{card.precisions}, batch size up to {card.max_batch_size}, sequence length up to {card.max_sequence_length}, "
        f"vocabulary of {card.config.vocab_size}; nothing vouches for its bytes or its tokenizer"
    )
