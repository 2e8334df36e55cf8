#!/usr/bin/env python3
"""Writes expected.txt: what the Bedrock log records of ../shared/data/bedrock come to.

Written from AWS's description of the records and of each model's own usage object, and sharing nothing with the Go code;
`python3 expected.py DATA_FOLDER >expected.txt`. One line a record, then the totals. Needs zstd on the PATH.
"""
import json
import subprocess
import sys

FILES = ["invocation_logs_real_converse_stream.jsonl", "invocation_logs_samples.jsonl", "invocation_logs_constructed.jsonl.zst"]
CLASSES = ["input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "reasoning"]


def lines(path):
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout.decode().splitlines()
    with open(path) as f:
        return f.read().splitlines()


def first(*values):
    return next((v for v in values if v is not None), None)


def tokens(record):
    """The tokens in disjoint classes, and why they are doubtful."""
    zero = dict.fromkeys(CLASSES, 0)
    if record.get("errorCode"):
        return zero, ""
    inp, out = record.get("input") or {}, record.get("output") or {}
    body = out.get("outputBodyJson") or {}
    used = body.get("usage") or {}
    # Converse and Nova write camel case, Anthropic's own form snake case; cache counts of Converse have two names.
    t = dict(zero)
    prompt = first(used.get("inputTokens"), used.get("input_tokens"), body.get("inputTextTokenCount"), inp.get("inputTokenCount"))
    answer = first(used.get("outputTokens"), used.get("output_tokens"), out.get("outputTokenCount"))
    read = first(used.get("cacheReadInputTokens"), used.get("cache_read_input_tokens"), inp.get("cacheReadInputTokenCount"), 0)
    write = first(used.get("cacheWriteInputTokens"), used.get("cache_creation_input_tokens"), inp.get("cacheWriteInputTokenCount"), 0)
    hour = sum(d["inputTokens"] for d in used.get("cacheDetails", []) if d["ttl"] == "1h")
    hour += (used.get("cache_creation") or {}).get("ephemeral_1h_input_tokens", 0)
    thinking = (used.get("output_tokens_details") or {}).get("thinking_tokens", 0)
    if prompt is None and answer is None:
        return zero, "" if body.get("amazon-bedrock-guardrailAction") == "INTERVENED" else "no_usage"
    t.update(input=prompt or 0, output=(answer or 0) - thinking, cache_read=read, cache_write_5m=write - hour, cache_write_1h=hour,
             reasoning=thinking)
    total = used.get("totalTokens")
    return t, "total_differs" if total is not None and total != sum(t.values()) else ""


def status(record):
    body = (record.get("output") or {}).get("outputBodyJson") or {}
    if record.get("errorCode"):
        return "error"
    if body.get("stopReason") == "guardrail_intervened" or body.get("amazon-bedrock-guardrailAction") == "INTERVENED":
        return "blocked"
    return "ok"


def latency(record):
    body = (record.get("output") or {}).get("outputBodyJson") or {}
    return (body.get("metrics") or {}).get("latencyMs", 0)


def main(folder):
    total, statuses, records = dict.fromkeys(CLASSES, 0), {}, 0
    for name in FILES:
        for n, line in enumerate(lines(f"{folder}/{name}"), 1):
            record = json.loads(line)
            used, doubt = tokens(record)
            state = status(record)
            statuses[state] = statuses.get(state, 0) + 1
            records += 1
            for c in CLASSES:
                total[c] += used[c]
            counts = " ".join(f"{c}={used[c]}" for c in CLASSES if used[c])
            print(f"{name}:{n} {record['modelId']} {state} latency_ms={latency(record)} {doubt or '-'} {counts}".rstrip())
    print("records", records, " ".join(f"{k}={v}" for k, v in sorted(statuses.items())))
    print("tokens", " ".join(f"{c}={total[c]}" for c in CLASSES))


if __name__ == "__main__":
    main(sys.argv[1])
