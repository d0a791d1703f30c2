"""What must be there before tables are answered: packages, an engine that fits its options, Ray, and room for the engines."""

import contextlib
import dataclasses
import importlib.util
import os
import secrets
from collections.abc import Iterator

from helpers import cli
from helpers.answer_options import AnswerOptions
from helpers.answerer import engine_tokenizer, fitted_options
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError, UsageError, missing_package
from helpers.files import require_file
from helpers.outputs import finish_pending
from helpers.tokenization import check_table


def engine_settings(args):
    """What the engines of the run have in common, found out without loading one. Raises DemoBertError."""
    _check_packages()
    from scripts.scaling.engines import EngineSettings  # once it is known that its packages are there

    card = _card_of(args.engine)
    tokenizer = engine_tokenizer(args.engine, card)
    check_table(tokenizer, card.config)
    asked = AnswerOptions(**{name: getattr(args, name) for name in AnswerOptions.__dataclass_fields__})
    on_gpu = card.backend != "openvino"
    if on_gpu and args.cores:
        raise UsageError(f"--cores has no effect: {args.engine} runs on a GPU")
    return EngineSettings(
        engine=os.path.abspath(args.engine),
        facts={"engine": card.engine_sha256, "tokenizer": tokenizer.sha256},
        options=fitted_options(asked, card),
        top_k=args.top_k,
        form=args.format,
        cores=None if on_gpu else args.cores or 0,
        run=secrets.token_hex(8),
    )


def _card_of(engine) -> EngineCard:
    """Raises DemoBertError where there is no card: it says how the engine is to be spread, and that all have the same."""
    require_file(engine, "engine")
    finish_pending(engine, EngineCard.set_of(engine))
    path = EngineCard.path_for(engine)
    if not path.exists():
        raise DemoBertError(f"{engine} has no engine card ({path}): copy its card beside it, or build it again")
    return EngineCard.read(path)


def _check_packages() -> None:
    for name in ("pyarrow", "pandas", "ray"):  # Ray is imported later: it reads its settings then
        if importlib.util.find_spec(name) is None:
            raise missing_package(name, "-r requirements-ray.txt", "what Ray Data spreads")


@contextlib.contextmanager
def started(args, settings) -> Iterator[tuple]:
    """Ray, running: (the settings with the cores that each engine has, how many engines there are)."""
    from scripts.scaling.cluster import ray_running, shares

    on_gpu = settings.cores is None
    if args.address is None and not on_gpu:
        shares(args.engines, args.cores, [len(os.sched_getaffinity(0))])  # Ray takes seconds to start
    with ray_running(args.address, on_gpu, args.verbose) as machines:
        if on_gpu:
            there = int(sum(machine.get("GPU", 0) for machine in machines))
            if not there or (args.engines or 0) > there:
                raise UsageError(f"{args.engines or 1} engines need a GPU each, and Ray sees {there}")
            yield settings, args.engines or there
            return
        engines, cores = shares(args.engines, args.cores, [int(machine.get("CPU", 0)) for machine in machines])
        if args.verbose:
            cli.note(f"{engines} engines of {cores} cores each")
        yield dataclasses.replace(settings, cores=cores), engines
