package otlp

import (
	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
)

// Values of the attribute tallystick.bill, by which a source says what of its
// telemetry it is billed by.
const (
	// billByMetrics: its token and cost metrics alone.
	billByMetrics = "metrics"
	// billNone: nothing, as its calls get into the log by another way.
	billNone = "none"
)

// callsProducer names calls that are billed elsewhere in the producers' counters.
const callsProducer = "otlp"

// billedElsewhere says whether a call has an event that does not come of this signal,
// and warns of what the source did not say itself. Billed again it would cost twice.
func (b *batch) billedElsewhere(f *facts) bool {
	switch {
	case f.bill == billNone:
	case f.bill == billByMetrics:
		b.warn("spans and log records are not counted of a source with tallystick.bill=metrics")
	case b.throughGateway(f):
	case f.bill != "":
		b.warn("tallystick.bill is neither metrics nor none, and was passed over")
		return false
	default:
		return false
	}
	return true
}

// throughGateway says whether the facts are of what went through the metering proxy, or
// another gateway that reports it, and warns of it.
func (b *batch) throughGateway(f *facts) bool {
	if f.text[proxyEvent] == "" && !b.gateways.has(f.text[serverAddress], f.num[serverPort], b.peer) && !b.gateways.hasURL(f.text[baseURL], b.peer) {
		return false
	}
	b.warn(throughGateway)
	return true
}

// addressed says whether the facts state where the call went.
func (f *facts) addressed() bool { return f.text[serverAddress] != "" || f.text[baseURL] != "" }

const throughGateway = "calls through the metering proxy, or another gateway of otlp.billed_elsewhere, are not counted again"

// metered says whether the proxy beside us has made the event of the call already.
// addressed is that the report states where the call went, which is no gateway: then
// only an id makes it the proxy's, not that it looks like one of the proxy's calls.
func (b *batch) metered(e *event.Event, addressed bool) bool {
	if e.ProviderRequestID == "" && addressed || !b.gateways.Metered.has(e) {
		return false
	}
	b.warn(throughGateway)
	return true
}

// countElsewhere counts the calls, or points, that are billed elsewhere, so that what was sent and
// what became of it can be reconciled.
func (b *batch) countElsewhere(edge Edge, rcv ingest.Received) {
	if b.elsewhere > 0 {
		edge.RefuseTelemetry(rcv, callsProducer, ingest.RuleBilledElsewhere, b.elsewhere)
	}
}
