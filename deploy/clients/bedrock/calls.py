"""Makes calls of Bedrock through the proxy with boto3.

calls.py ENDPOINT <jobs: reads JSON lines of jobs from standard input and prints one line of JSON for each, with what the
SDK made of the answer. The SDK signs with credentials of no worth and shows the token of TALLYSTICK_TOKEN in X-Api-Key;
as a bearer token it would send it over TLS only.
"""

import json
import os
import sys

import boto3
import botocore.config
import botocore.exceptions

token = os.environ["TALLYSTICK_TOKEN"]
settings = botocore.config.Config(retries={"total_max_attempts": 1}, read_timeout=60)
headers = {}


def client():
    c = boto3.Session(aws_access_key_id="AKIADUMMYDUMMY000001", aws_secret_access_key="dummy", aws_session_token="dummy-session").client(
        "bedrock-runtime", endpoint_url=sys.argv[1], region_name="us-east-1", config=settings
    )
    c.meta.events.register("before-call.bedrock-runtime", lambda params, **_: params["headers"].update(headers))
    return c


c = client()


def run(job):
    headers.clear()
    headers.update(job["headers"])
    headers["X-Api-Key"] = job.get("token") or token
    model, usage = job["model"], None
    if job["method"] == "invoke":
        answer = c.invoke_model(modelId=model, body=json.dumps(job["request"]))
        json.loads(answer["body"].read())
    elif job["method"] == "converse":
        answer = c.converse(modelId=model, **job["request"])
        usage = answer["usage"]
    else:
        answer = c.converse_stream(modelId=model, **job["request"])
        for event in answer["stream"]:
            if "metadata" in event:
                usage = event["metadata"]["usage"]
    return usage, answer["ResponseMetadata"]


for line in sys.stdin:
    job = json.loads(line)
    out = {"id": job["id"], "ok": False}
    try:
        usage, meta = run(job)
        out.update(ok=True, status=meta["HTTPStatusCode"], event_id=meta["HTTPHeaders"].get("x-tallystick-event-id"))
        if usage:
            out["usage"] = {"prompt": usage["inputTokens"], "completion": usage["outputTokens"]}
    except botocore.exceptions.ClientError as e:
        meta = e.response["ResponseMetadata"]
        out.update(error=e.response["Error"]["Code"], message=e.response["Error"]["Message"][:300], status=meta["HTTPStatusCode"])
        out["event_id"] = meta["HTTPHeaders"].get("x-tallystick-event-id")
    except Exception as e:
        out.update(error=type(e).__name__, message=str(e)[:300])
    print(json.dumps(out), flush=True)
