"""What Triton's Python backend loads as the question-answering model of an exported repository.

It lies in the model's version folder there, with the engine, its card and tokenizer, and as much of helpers/ as they
need. What config.pbtxt says under `parameters` is read here; scripts/serving/model_configs.py writes it.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

#: What clients are told where it is no fault of theirs; the log says more than they need to know of this machine.
_FAILED = "the server failed on this question; its log says why"


class TritonPythonModel:
    """Triton's interface to a model: `initialize` once, `execute` for each batch of requests, `finalize` at the end."""

    def initialize(self, args: dict) -> None:
        """Opens the engine. `args` are Triton's: the configuration as JSON, the instance's name and device."""
        config = json.loads(args["model_config"])
        take_device(args, config)
        folder = Path(args["model_repository"]) / args["model_version"]
        # Before the working folder and the installed packages, either of which may have a `helpers`.
        sys.path.insert(0, str(folder))
        from helpers.errors import DemoBertError  # after take_device: OpenVINO counts its cores, CUDA its devices
        from helpers.serving.service import Request, Service

        self._request, self._refusal = Request, DemoBertError
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        try:
            self._answerer = open_answerer(folder, settings)
        except DemoBertError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._service = Service(self._answerer, int(settings["max_passage"]))

    def execute(self, requests: list) -> list:
        """A response for each request, in order: its outputs, or an error of its own."""
        # Whatever leaves this function is sent to the clients with the paths of this machine in it.
        try:
            outcomes = self._service.answer([self._read(request) for request in requests])
            return [self._response(outcome) for outcome in outcomes]
        except Exception:
            traceback.print_exc()
            error = pb_utils.TritonError(_FAILED, pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=error) for _ in requests]

    def finalize(self) -> None:
        """Lets go of the engine."""
        self._answerer.close()

    def _read(self, request):
        texts = [
            [bytes(text) for text in pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()]
            for name in ("passage", "question")
        ]
        return self._request(*texts, json.loads(request.parameters() or "{}"))

    def _response(self, outcome):
        if isinstance(outcome, self._refusal):
            error = pb_utils.TritonError(str(outcome), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor(name, array[:, None]) for name, array in outputs(outcome).items()]
        )


def outputs(replies: list) -> dict[str, np.ndarray]:
    """The outputs of one request, a row for each of its questions; texts are UTF-8 as bytes, dtype object.

    `start` and `end` are int64, in characters (code points) of the passage; `probability` is float64; `n_best` is a JSON
    array of the best answers, best first.
    """
    best = [reply.answer for reply in replies]
    n_best = [json.dumps([answer.to_dict() for answer in reply.n_best], ensure_ascii=False) for reply in replies]
    return {
        "answer": _as_bytes(answer.text for answer in best),
        "probability": np.array([answer.probability for answer in best], np.float64),
        "start": np.array([answer.start_char for answer in best], np.int64),
        "end": np.array([answer.end_char for answer in best], np.int64),
        "n_best": _as_bytes(n_best),
    }


def _as_bytes(texts) -> np.ndarray:
    return np.array([text.encode("utf-8") for text in texts], object)


def open_answerer(folder: Path, settings: dict[str, str]):
    """The `Answerer` over the engine in `folder`, or over the model that `settings["engine_model"]` describes.

    Raises DemoBertError.
    """
    from helpers.answer_options import AnswerOptions
    from helpers.answerer import Answerer
    from helpers.backends import load_engine

    engine = folder / settings["engine"]
    load = load_engine
    if called := settings.get("engine_model"):
        from helpers.serving.called_engine import CalledEngine, CalledModel

        def load(path, layout, **_):
            return CalledEngine.of(path, CalledModel(**json.loads(called)))

    options = AnswerOptions(**json.loads(settings["options"]))
    return Answerer.open(engine, options, throughput=settings["prepare_for"] == "throughput", load=load)


def take_device(args: dict, config: dict) -> None:
    """Keep this process to the GPU of its instance, or to its share of the cores.

    Numerical libraries start a thread for each core that the process may use. So the instances of a CPU divide the
    cores by what the operating system lets them use: no engine has to be told of a number of threads.
    """
    if args["model_instance_kind"] == "GPU":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        device = args["model_instance_device_id"]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[int(device)] if seen else device
    elif "engine_model" not in config["parameters"]:
        groups = [group for group in config["instance_group"] if group["kind"] == "KIND_CPU"]
        *_, group, index = args["model_instance_name"].split("_")
        before = sum(one["count"] for one in config["instance_group"][: int(group)])
        share = cores_of(int(index) + before, sum(one["count"] for one in groups), sorted(os.sched_getaffinity(0)))
        os.sched_setaffinity(0, share)


def cores_of(instance: int, instances: int, cores: list[int]) -> list[int]:
    """The neighbouring cores that are `instance`'s; where there are more instances than cores, they share."""
    if instances >= len(cores):
        return [cores[instance % len(cores)]]
    first, last = (len(cores) * index // instances for index in (instance, instance + 1))
    return cores[first:last]
