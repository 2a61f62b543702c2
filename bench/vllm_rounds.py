"""Runs inside vLLM's own environment: reads the work from stdin, prints tokens per second of each round as JSON."""

import json
import sys
import time

if __name__ == "__main__":
    from vllm import LLM, SamplingParams, TokensPrompt

    request = json.load(sys.stdin)
    work = request["work"]
    llm = LLM(
        model=request["folder"],
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=max(work["num_sequences"], 16),
        enable_prefix_caching=False,
    )
    parameters = SamplingParams(max_tokens=work["num_new_tokens"], temperature=1.0, ignore_eos=True, detokenize=False)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["prompts"]]
    rates = []
    for number in range(request["rounds"] + 1):
        started = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        num_drawn = sum(len(output.outputs[0].token_ids) for output in outputs)
        if number:
            rates.append(num_drawn / seconds)
    print(json.dumps(rates))
