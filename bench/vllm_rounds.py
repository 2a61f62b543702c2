"""Runs inside vLLM's own environment: reads the work from stdin, prints tokens per second of each round as JSON.

Both rows get the same memory for keys and values, the same limits and the same prompts. Each is measured alone and then
beside another process that keeps a core busy.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

MARK = "RATES "

KV_MEMORY_BYTES = 2**30
"""Said, because vLLM asks for nine tenths of all memory otherwise, and the other rows' engines hold a part of it."""


def rounds_of(request: dict[str, Any]) -> Iterator[int]:
    """One that warms up, as many as are asked for, and as many again while something else computes."""
    yield from range(request["rounds"] + 1)
    with busy_process():
        yield from range(request["rounds"] + 1, 2 * request["rounds"] + 1)


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """One core's worth of other work."""
    endless = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        endless.kill()
        endless.wait()


def one_network(request: dict[str, Any]) -> list[float]:
    """vLLM by itself."""
    from vllm import LLM, SamplingParams, TokensPrompt

    work = request["work"]
    llm = LLM(
        model=request["folders"][0],
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=max(work["num_sequences"], 16),
        enable_prefix_caching=False,
        kv_cache_memory_bytes=KV_MEMORY_BYTES,
    )
    parameters = SamplingParams(max_tokens=work["num_new_tokens"], temperature=1.0, ignore_eos=True, detokenize=False)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["prompts"]]
    rates = []
    for _ in rounds_of(request):
        started = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        rates.append(sum(len(output.outputs[0].token_ids) for output in outputs) / seconds)
    return rates


def the_pair(request: dict[str, Any]) -> list[float]:
    """cong's back end: the pair as one vLLM model, every token with both networks' log-probabilities."""
    from cong.config import EngineConfig, ModelsConfig, NetworkConfig
    from cong.engine import Generate, SampleFinished, open_engine
    from cong.schemas import Prompt, SamplingParameters

    work = request["work"]
    aligned, base = (NetworkConfig(source=folder) for folder in request["folders"])
    config = EngineConfig(
        backend="vllm",
        kv_memory_bytes=KV_MEMORY_BYTES,
        max_running=max(work["num_sequences"], 16),
        max_step_tokens=2048,
    )
    engine = open_engine(ModelsConfig(aligned=aligned, base=base, dtype="float32"), config)
    parameters = SamplingParameters.contrastive(0.4, max_tokens=work["num_new_tokens"], ignore_eos=True)
    rates = []
    for number in rounds_of(request):
        started = time.perf_counter()
        for place, ids in enumerate(request["prompts"]):
            # Another first token in every round: shared prefixes would spare the prompts.
            prompt = Prompt(token_ids=(number, *ids[1:]))
            engine.submit(Generate(f"{number}-{place}", prompt, parameters, (place,)))
        num_drawn = 0
        while engine.has_work:
            for event in engine.events():
                assert isinstance(event, SampleFinished)
                num_drawn += len(event.record.completion_token_ids)
        rates.append(num_drawn / (time.perf_counter() - started))
    return rates


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    measured = (the_pair if asked["row"] == "pair" else one_network)(asked)
    # Marked, because vLLM writes its log here too, to the last.
    num_rounds = asked["rounds"]
    print(f"{MARK}{json.dumps([measured[1 : num_rounds + 1], measured[num_rounds + 1 :]])}")
