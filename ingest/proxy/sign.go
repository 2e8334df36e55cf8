package proxy

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/tallystick/tallystick/internal/sigv4"
)

// AWS signs requests for one host, so a client's signature is worth nothing upstream:
// it ends here with all that belongs to it (X-Amz-…), whatever it was made with, and
// says nothing about who calls. The client shows our token beside it, in X-Api-Key,
// or instead of it as a bearer token, which AWS's SDKs send when
// AWS_BEARER_TOKEN_BEDROCK is set. The tenant's credential signs what goes upstream.

const (
	// signature begins an Authorization header of AWS.
	signature = "AWS4-HMAC-SHA256"
	// amzPrefix begins the headers and query parameters that belong to a signature.
	amzPrefix = "X-Amz-"
	// bedrockPrefix begins headers that decide what a call does: guardrail, tier, trace.
	bedrockPrefix = "X-Amzn-Bedrock-"
	// signedService is what requests are signed for.
	signedService = "bedrock"
)

// errNoRegion: where an upstream is says nothing of its region.
var errNoRegion = errors.New("proxy: no region to sign for")

// authorize puts a key where its upstream wants it. An AWS credential stays out: sign
// uses it.
func authorize(h http.Header, up *upstream, secret string) {
	switch {
	case up.Auth == SigV4 && sigv4.Is(secret):
	case up.Auth == Bearer || up.Auth == SigV4: // of Bedrock, an API key
		h["Authorization"] = []string{"Bearer " + secret}
	default:
		h[authHeaders[up.Auth]] = []string{secret}
	}
}

// sign signs the call's request where its upstream and key are AWS's. The body is
// still the call's. Errors: sigv4.ErrCredential, sigv4.ErrPath, errNoRegion.
func (x *exchange) sign(req *http.Request) error {
	if x.to.up.Auth != SigV4 {
		return nil
	}
	req.URL.RawQuery = withoutSignature(req.URL.RawQuery)
	if !sigv4.Is(x.key.Secret) {
		return nil
	}
	credential, err := sigv4.Parse(x.key.Secret)
	if err != nil {
		return err
	}
	at := sigv4.Scope{Region: x.region(), Service: signedService}
	if at.Region == "" {
		return errNoRegion
	}
	var body []byte
	if x.body != nil {
		body = x.body.b
	}
	return credential.Sign(req, body, at, x.p.opts.Now(), bedrockPrefix)
}

// withoutSignature is a query without the parameters of a signature.
func withoutSignature(query string) string {
	if !strings.Contains(query, amzPrefix) {
		return query
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return "" // whatever it is, it could hold a credential
	}
	for name := range values {
		if strings.HasPrefix(name, amzPrefix) {
			values.Del(name)
		}
	}
	return values.Encode()
}

// unsigned is the refusal of a call that could not be signed; nil is another error's.
func unsigned(err error, provider string) *refusal {
	switch {
	case errors.Is(err, errNoRegion):
		return &refusal{code: http.StatusBadGateway, kind: "no_region", text: "where " + provider + " is says no region: give it region=… in proxy.upstreams", cause: err}
	case errors.Is(err, sigv4.ErrCredential):
		return &refusal{code: http.StatusBadGateway, kind: "no_provider_key", text: "the key for " + provider + " is no whole AWS credential", cause: err}
	}
	return nil
}

// duplex reports a call whose two sides speak at once, each message of the client with
// a signature that follows from the one before: nobody but its signer can pass it on.
func (x *exchange) duplex() bool {
	return x.to.up.Auth == SigV4 && strings.HasSuffix(x.to.path, "/invoke-with-bidirectional-stream")
}

// whoSigned is what a client is told that shows a signature and no token.
func whoSigned(r *http.Request) string {
	if strings.HasPrefix(r.Header.Get("Authorization"), signature) {
		return "an AWS signature does not say who calls: send a Tallystick token in X-Api-Key, or as AWS_BEARER_TOKEN_BEDROCK"
	}
	return "send a Tallystick token as the API key"
}
