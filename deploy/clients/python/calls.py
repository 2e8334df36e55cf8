"""Makes calls through the proxy with the OpenAI or the Anthropic SDK.

calls.py openai|anthropic BASE_URL <jobs: reads JSON lines of jobs from standard input and prints one line of JSON for
each, with what the SDK made of the answer. The token is in TALLYSTICK_TOKEN; a job may have another one.
"""

import inspect
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai

SDK = {"openai": openai, "anthropic": anthropic}[sys.argv[1]]
MAKE = {"openai": openai.OpenAI, "anthropic": anthropic.Anthropic}[sys.argv[1]]
clients = {}


def client(token):
    if token not in clients:
        clients[token] = MAKE(api_key=token, base_url=sys.argv[2], timeout=60)
    return clients[token]


def resource(c, method):
    return {
        "chat": lambda: c.chat.completions,
        "responses": lambda: c.responses,
        "embeddings": lambda: c.embeddings,
        "messages": lambda: c.messages,
        "beta_messages": lambda: c.beta.messages,
    }[method]()


def count(usage):
    """What a call used, as the SDK's objects say it."""
    if usage is None:
        return None
    if getattr(usage, "prompt_tokens", None) is not None:
        return {"prompt": usage.prompt_tokens, "completion": getattr(usage, "completion_tokens", 0) or 0}
    cached = (getattr(usage, "cache_read_input_tokens", 0) or 0) + (getattr(usage, "cache_creation_input_tokens", 0) or 0)
    return {"prompt": (usage.input_tokens or 0) + cached, "completion": usage.output_tokens or 0}


def read_stream(stream, job, out):
    usage, started = None, None
    out["events"] = 0
    for event in stream:
        out["events"] += 1
        if getattr(event, "usage", None) is not None:
            usage = event.usage
        kind = getattr(event, "type", "")
        if kind == "message_start":
            started = event.message.usage
        elif getattr(event, "response", None) is not None and event.response.usage is not None:
            usage = event.response.usage
        if out["events"] == job.get("leave_after"):
            stream.close()
            break
    if started is not None:  # later statements of the same call win
        for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
            if usage is not None and getattr(usage, name, None) is None:
                setattr(usage, name, getattr(started, name))
        usage = usage or started
    out["usage"] = count(usage)


def read_batch(c, job, out):
    """The lines of a batch's results, and what they used together."""
    out.update(events=0, usage={"prompt": 0, "completion": 0})
    if sys.argv[1] == "anthropic":
        lines = c.messages.batches.results(job["request"]["id"], extra_headers=job["headers"])
        usages = (count(line.result.message.usage) if line.result.type == "succeeded" else None for line in lines)
    else:
        lines = c.files.content(job["request"]["id"], extra_headers=job["headers"]).text.splitlines()
        answers = (json.loads(line)["response"] for line in lines)
        usages = ({"prompt": a["body"]["usage"]["prompt_tokens"], "completion": a["body"]["usage"]["completion_tokens"]} if a else None for a in answers)
    for used in usages:
        out["events"] += 1
        for name in out["usage"]:
            out["usage"][name] += used[name] if used else 0
    out["ok"] = True


def run(line):
    job = json.loads(line)
    out = {"id": job["id"], "ok": False}
    c = client(job.get("token") or os.environ["TALLYSTICK_TOKEN"]).with_options(max_retries=job.get("retries", 0))
    if job["method"] == "batch_results":
        read_batch(c, job, out)
        return json.dumps(out)
    create = resource(c, job["method"]).with_raw_response.create
    known = inspect.signature(resource(c, job["method"]).create).parameters
    request = dict(job["request"])
    extra = {k: request.pop(k) for k in list(request) if k not in known}
    try:
        raw = create(**request, extra_headers=job["headers"], extra_body=extra or None)
        out["event_id"] = raw.headers.get("x-tallystick-event-id")
        answer = raw.parse()
        if job.get("stream"):
            read_stream(answer, job, out)
        else:
            out["usage"] = count(answer.usage)
        out["ok"] = True
    except SDK.APIStatusError as e:
        out.update(error=type(e).__name__, status=e.status_code, message=str(e)[:300], event_id=e.response.headers.get("x-tallystick-event-id"))
    except SDK.APIError as e:
        out.update(error=type(e).__name__, message=str(e)[:300])
    except Exception as e:  # a stream that broke is an error of the transport
        out.update(error=type(e).__name__, message=str(e)[:300])
    return json.dumps(out)


with ThreadPoolExecutor(4) as pool:
    for result in pool.map(run, sys.stdin):
        print(result, flush=True)
