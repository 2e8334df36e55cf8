"""Makes calls with the OpenAI SDK under OpenTelemetry's instrumentation.

Usage: emit.py PROVIDER_URL OTLP_ENDPOINT grpc|http CALLS. The token is in
TALLYSTICK_TOKEN, the provider's key in PROVIDER_KEY. Content capture is on: prompts and answers are sent, as users who
debug send them. Spans are exported twice, as after an answer that got lost.
"""

import os
import sys

provider, endpoint, protocol, calls = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "true"
os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = os.environ.get("SEMCONV", "")

from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor  # noqa: E402
from opentelemetry.sdk._logs import LoggerProvider  # noqa: E402
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: E402
from opentelemetry.sdk.resources import Resource  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: E402

if protocol == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    headers = {"authorization": "Bearer " + os.environ["TALLYSTICK_TOKEN"]}
    common = {"endpoint": endpoint, "headers": headers, "insecure": True}
    spans = lambda: OTLPSpanExporter(**common)  # noqa: E731
    metrics, logs = OTLPMetricExporter(**common), OTLPLogExporter(**common)
else:
    import base64

    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    basic = base64.b64encode(("otel:" + os.environ["TALLYSTICK_TOKEN"]).encode()).decode()
    common = {"headers": {"Authorization": "Basic " + basic}, "compression": Compression.Gzip}
    spans = lambda: OTLPSpanExporter(endpoint=endpoint + "/v1/traces", **common)  # noqa: E731
    metrics = OTLPMetricExporter(endpoint=endpoint + "/v1/metrics", **common)
    logs = OTLPLogExporter(endpoint=endpoint + "/v1/logs", **common)

resource = Resource.create({"service.name": "otel-" + protocol, "tallystick.team": "telemetry"})
tracing = TracerProvider(resource=resource)
tracing.add_span_processor(BatchSpanProcessor(spans()))
tracing.add_span_processor(BatchSpanProcessor(spans()))
metering = MeterProvider(resource=resource, metric_readers=[PeriodicExportingMetricReader(metrics)])
logging = LoggerProvider(resource=resource)
logging.add_log_record_processor(BatchLogRecordProcessor(logs))
OpenAIInstrumentor().instrument(tracer_provider=tracing, meter_provider=metering, logger_provider=logging)

import openai  # noqa: E402

client = openai.OpenAI(
    base_url=provider + "/v1", api_key=os.environ.get("PROVIDER_KEY", "sk-test"), max_retries=0, default_headers={"X-Tallystick-Team": "telemetry"}
)
with tracing.get_tracer("app").start_as_current_span("a request of the application"):
    for n in range(calls):
        messages = [{"role": "user", "content": f"planted-prompt-{protocol}-{n}"}]
        if n % 4 == 1:
            for _ in client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True, stream_options={"include_usage": True}):
                pass
        elif n % 4 == 2:
            client.embeddings.create(model="text-embedding-3-small", input=f"planted-prompt-{n}")
        elif n % 4 == 3:
            try:
                client.chat.completions.create(model="fails", messages=messages)
            except openai.RateLimitError:
                pass
        else:
            client.chat.completions.create(model="gpt-4o-mini", messages=messages)
tracing.shutdown()
metering.shutdown()
logging.shutdown()
