package ingest

import "errors"

// Errors between the parts of the edge; each is translated into an answer once.
var (
	// errUnknownTenant: the tenant has no keys, so it does not exist.
	errUnknownTenant = errors.New("ingest: unknown tenant")
	// errNoUsableKey: the tenant exists but its keys cannot be had now. Nothing
	// of it can be accepted; the producer comes again.
	errNoUsableKey = errors.New("ingest: no usable key")
	// errUnknownSetting: which tags the tenant keeps confidential cannot be had
	// now. An event with tags of it cannot be accepted; the producer comes again.
	errUnknownSetting = errors.New("ingest: the tenant's confidential tags are not known")
	// errUnknownRules: the tenant's mapping rules were never known and cannot be
	// had now; the producer comes again.
	errUnknownRules = errors.New("ingest: the tenant's mapping rules are not known")
	// errTooManyEvents: a request or frame holds more than MaxEvents.
	errTooManyEvents = errors.New("ingest: more than 1000 events")
	// errNoEvents: a request holds no event.
	errNoEvents = errors.New("ingest: no events")
	// errTooLarge: a body is longer than MaxBodyBytes, as sent or decompressed.
	errTooLarge = errors.New("ingest: body is too large")
	// errEncoding: a body is not in the encoding that its header names.
	errEncoding = errors.New("ingest: body is not in its stated content encoding")
)

// RuleUnavailable is the rule of a refusal that is no fault of the event: it is
// not known to be durable. The same event may be sent again as it is.
const RuleUnavailable = "unavailable"
