package proxy

import (
	"net/http"
	"strings"
)

// Headers of requests and responses.
const (
	// TenantHeader names the tenant where the token is of several.
	TenantHeader = "X-Tallystick-Tenant"
	// EventIDHeader of a response is the id of the call's event.
	EventIDHeader = "X-Tallystick-Event-Id"
	// ReturnHeader of a request asks for CostHeader and RemainingHeader: in the
	// response's headers, or in its trailers where the response has no length.
	ReturnHeader = "X-Tallystick-Return"
	// CostHeader is what the call cost, in USD; "unknown" where it has no price.
	CostHeader = "X-Tallystick-Cost-Usd"
	// RemainingHeader is what the tightest budget has left, in USD.
	RemainingHeader = "X-Tallystick-Budget-Remaining-Usd"
)

// ownPrefix begins every header that is ours; none of them goes upstream.
const ownPrefix = "X-Tallystick-"

// hop are the headers of one connection (RFC 9110, 7.6.1), and those of a request
// that are the proxy's affair: who calls, in which encoding it wants the answer,
// which proxies it came through, and cookies, which are of our host.
var hop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Authorization": true,
	"Proxy-Connection": true, "Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
}

var ended = map[string]bool{
	"Authorization": true, "X-Api-Key": true, "X-Goog-Api-Key": true, "Api-Key": true,
	"Accept-Encoding": true, "Content-Length": true, "Host": true, "Cookie": true, "Expect": true,
	"Forwarded": true, "X-Forwarded-For": true, "X-Forwarded-Host": true, "X-Forwarded-Proto": true, "X-Real-Ip": true, "Via": true,
}

// upstreamHeaders are the client's headers that go on: none of a signature, and dropped
// end here too.
func upstreamHeaders(from http.Header, dropped []string) http.Header {
	to := make(http.Header, len(from)+2)
	for name, values := range from {
		if !hop[name] && !ended[name] && !strings.HasPrefix(name, ownPrefix) && !strings.HasPrefix(name, amzPrefix) {
			to[name] = values
		}
	}
	dropNamed(to, from["Connection"])
	for _, name := range dropped {
		delete(to, http.CanonicalHeaderKey(name))
	}
	if to["User-Agent"] == nil {
		to["User-Agent"] = []string{""} // or the transport would add its own
	}
	return to
}

// ofHost are headers of a response that a provider's host says of itself, and the proxy's
// may not repeat: cookies, and for how long browsers must come by TLS.
var ofHost = map[string]bool{"Set-Cookie": true, "Strict-Transport-Security": true}

// downstreamHeaders puts the provider's headers into the response's.
func downstreamHeaders(to, from http.Header) {
	for name, values := range from {
		if !hop[name] && !ofHost[name] && !strings.HasPrefix(name, ownPrefix) {
			to[name] = values
		}
	}
	dropNamed(to, from["Connection"])
}

// dropNamed drops the headers that a Connection header names.
func dropNamed(h http.Header, connection []string) {
	for _, list := range connection {
		if strings.EqualFold(list, "keep-alive") || strings.EqualFold(list, "close") {
			continue
		}
		for name := range strings.SplitSeq(list, ",") {
			delete(h, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
}
