"""Kills builder.py again and again, and starts several at once: an engine's three files are always one whole set.

    python3 -m tests.kill_builder --kills 300 --aimed 50 --rounds 50

Two models build to one name in turn. Kills lie anywhere in a build's measured length; aimed ones in the moment in which
the new files are put in place. After each, the engine answers as the old model or the new one, or is refused with the
word to build it again; of several builders at once, one's whole set is left. It ends with 1 where that does not hold.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from helpers.answerer import Answerer
from helpers.engine_card import EngineCard
from helpers.errors import DemoBertError
from tests.conftest import BUNDLED, ROOT

PASSAGE, QUESTION = "The tower was built in 1889 by the company of Gustave Eiffel.", "When was the tower built?"


def write_models(folder: Path) -> list[Path]:
    """The bundled model, and one that answers otherwise: its logits have the other sign. Their tokenizers differ too."""
    models = [folder / "plain", folder / "turned"]
    for model in models:
        shutil.copytree(BUNDLED, model)
    path = models[1] / "model.safetensors"
    tensors = load_file(path)
    for name in ("qa_outputs.weight", "qa_outputs.bias"):
        tensors[name] = -tensors[name]
    save_file(tensors, path)
    vocabulary = (models[1] / "vocab.txt").read_text(encoding="utf-8").splitlines()
    first, second = vocabulary.index("[unused98]"), vocabulary.index("[unused97]")
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (models[1] / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return models


def start(model: Path, engine: Path) -> subprocess.Popen:
    command = [sys.executable, ROOT / "builder.py", "-pt", model, "-s", "32", "-o", engine, "--backend", "openvino"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> int:
    """Wait for a builder that nobody kills. Raises RuntimeError where it fails, but for another's lock."""
    _, err = process.communicate()
    if process.returncode and "another process is writing" not in err:
        raise RuntimeError(f"a builder ended with {process.returncode}: {err[-1000:]}")
    return process.returncode


def answer(engine: Path) -> tuple:
    with Answerer.open(engine) as answerer:
        reply = answerer.ask(PASSAGE, QUESTION)
    tokenizer = json.loads(EngineCard.tokenizer_path_for(engine).read_bytes())
    return reply.text, round(reply.answer.probability, 4), tokenizer["model"]["vocab"]["[unused98]"]


def outcome(engine: Path, known: dict) -> str:
    """What is there: one of the `known` answers' names, "refused", "nothing", or "WRONG"."""
    if not engine.exists() and not EngineCard.path_for(engine).exists():
        return "nothing"
    try:
        return known.get(answer(engine), "WRONG")
    except DemoBertError as error:
        return "refused" if "build it again" in str(error) else f"WRONG ({error})"


def wait_for_the_renames(process: subprocess.Popen, engine: Path, moments: random.Random) -> None:
    pending = engine.parent / f".{engine.name}.pending"
    while process.poll() is None and not pending.exists():
        time.sleep(0)
    time.sleep(moments.choice([0, 0, 0, 1e-5, 5e-5, 2e-4]))


def kill(models: list[Path], engine: Path, known: dict, args, moments: random.Random) -> Counter:
    """The outcomes of all kills."""
    begin = time.perf_counter()
    finish(start(models[0], engine))
    seconds, outcomes = time.perf_counter() - begin, Counter()
    for count in tqdm(range(args.kills + args.aimed), unit="kill"):
        process = start(models[(count + 1) % 2], engine)
        if count < args.kills:
            time.sleep(moments.uniform(0, seconds))
        else:
            wait_for_the_renames(process, engine, moments)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        alive = "killed" if process.returncode == -signal.SIGKILL else "ended before"
        kind = "anywhere" if count < args.kills else "aimed"
        outcomes[f"{kind}, {alive}: {outcome(engine, known)}"] += 1
    return outcomes


def race(models: list[Path], engine: Path, known: dict, rounds: int) -> Counter:
    outcomes = Counter()
    for _ in tqdm(range(rounds), unit="round"):
        builders = [start(model, engine) for model in (*models, models[0])]
        refused = sum(finish(builder) != 0 for builder in builders)
        outcomes[f"{len(builders) - refused} built, {refused} told of another: {outcome(engine, known)}"] += 1
    return outcomes


def main(arguments) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--aimed", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int.from_bytes(np.random.bytes(4), "little"))
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as root:
        models, engine = write_models(Path(root)), Path(root) / "engines" / "x.engine"
        engine.parent.mkdir()
        known = {}
        for model in models:
            finish(start(model, engine))
            known[answer(engine)] = model.name
        if len(known) != 2:
            raise RuntimeError("the two models can't be told apart")
        outcomes = kill(models, engine, known, args, random.Random(args.seed))
        outcomes += race(models, engine, known, args.rounds)
        finish(start(models[0], engine))
        left = {path.name for path in engine.parent.iterdir()} - {path.name for path in EngineCard.set_of(engine)}
    for what, count in sorted(outcomes.items()):
        print(f"{count:5} {what}")
    wrong = sum(count for what, count in outcomes.items() if "WRONG" in what or "nothing" in what)
    print(f"seed {args.seed}: {wrong} wrong; left after the next build: {', '.join(sorted(left)) or 'nothing'}")
    return int(bool(wrong or left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
