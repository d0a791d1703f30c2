"""The README.md of an exported repository."""

from helpers.engine_card import EngineCard
from scripts.serving.contents import Contents
from scripts.serving.model_configs import Serving

_GUIDE = """# {name}: question answering for Triton

Written by demoBERT's `scripts/export_triton.py`; engine, tokenizer and code are inside. Any `tritonserver` with the
Python backend{and_tensorrt} serves it. An engine runs what is in it: take repositories from people whom you trust.

| model | is |
| --- | --- |
| `{qa}` | passages and questions in, answers out |
{engine_row}
The engine: {backend} {version}, {layout}, {precision}, built for {device}.

## Serve it

In NVIDIA's container (IMAGE: `tritonserver`, {release}), from the folder that this one, REPOSITORY, is in, on
this machine only:

```bash
docker run --rm {gpus}--shm-size 256m -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 -p 127.0.0.1:8002:8002 \\
    -v "$PWD/REPOSITORY:/models:ro" IMAGE \\
    bash -c 'pip install {packages} && exec tritonserver --model-repository /models{arguments}'
```

Triton's protocol lets callers share memory with the server, load models and set its logging. demoBERT's
`scripts/serve.sh --repository` starts it with these locked; so do the flags `--http-restricted-api` and
`--grpc-restricted-protocol`.

## Ask it

```bash
curl -s 127.0.0.1:8000/v2/models/{qa}/infer -d '{{
  "inputs": [
    {{"name": "passage", "shape": [1, 1], "datatype": "BYTES", "data": ["The tower was built in 1889."]}},
    {{"name": "question", "shape": [1, 1], "datatype": "BYTES", "data": ["When was the tower built?"]}}
  ],
  "parameters": {{"top_k": 3}}
}}'
```

Texts are UTF-8, of shape [n, 1] for n questions at once (at most {max_batch_size}); a passage has at most {max_passage}
characters. Outputs, [n, 1] each:

| output | type | holds |
| --- | --- | --- |
| `answer` | BYTES | the answer, a piece of the passage |
| `probability` | FP64 | softmax over the best answers |
| `start`, `end` | INT64 | the answer's place in the passage, in code points |
| `n_best` | BYTES | JSON: the `top_k` best answers, best first |

What can't be answered gets status 400 and one line; a full queue (of {max_queue_size} requests) 503.

## Watch it

`/v2/health/live` and `/v2/models/{qa}/ready` say whether it answers; port 8002's `/metrics` has counts and times for
Prometheus: `nv_inference_request_success`, `nv_inference_request_failure`, `nv_inference_queue_duration_us`,
`nv_inference_pending_request_count`. It is ready when it has answered its warm-up requests (`warmup/`).

Triton does not start a backend process again that died, and says that it is ready all the same before release 26.01:
let what watches it ask a question, or use `scripts/serve.sh`, which starts the server again.
"""


def guide(serving: Serving, card: EngineCard, contents: Contents) -> str:
    """README.md of the repository."""
    by_triton = contents.engine is not None
    return _GUIDE.format(
        name=serving.name,
        qa=serving.question_answering,
        and_tensorrt=" and the TensorRT backend" if by_triton else "",
        engine_row=f"| `{serving.engine}` | the engine alone: token ids in, logits out |\n" if by_triton else "",
        backend=card.backend,
        version=card.backend_version,
        layout=card.layout,
        precision="+".join(card.precision),
        device=card.device,
        release=f"one that has TensorRT {card.backend_version}" if by_triton else "any from 24.06 on",
        gpus="--gpus all " if contents.gpu else "",
        packages=" ".join(contents.packages),
        arguments="".join(f" {argument}" for argument in contents.arguments),
        max_batch_size=serving.max_batch_size,
        max_passage=serving.max_passage,
        max_queue_size=serving.max_queue_size,
    )
