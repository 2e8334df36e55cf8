package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/tallystick/tallystick/ingest/usage"
)

// Auth is where a provider wants its key.
type Auth uint8

// The places.
const (
	// Bearer is Authorization: Bearer.
	Bearer Auth = iota
	// XAPIKey is x-api-key (Anthropic).
	XAPIKey
	// GoogAPIKey is x-goog-api-key (Gemini).
	GoogAPIKey
	// APIKey is api-key (Azure).
	APIKey
	// SigV4 is AWS's signature, made with an AWS credential; another key than one, an
	// API key of Bedrock, goes as Bearer.
	SigV4

	numAuths
)

// authHeaders are the headers of the places that are one, in their canonical form.
var authHeaders = [SigV4]string{"Authorization", "X-Api-Key", "X-Goog-Api-Key", "Api-Key"}

// place is the part of a Base and of a path that names a region or a resource.
const place = "{place}"

// Provider is one upstream.
type Provider struct {
	// Name is the provider in events, prices and keys, and the first part of the
	// paths that lead to it: /openai/v1/chat/completions.
	Name string
	// Base is the URL that the rest of the path is put behind. Where it holds
	// "{place}", the path's second part is put in: /bedrock/eu-west-1/model/….
	Base string
	// Like is the host whose dialects the upstream speaks; "" is Base's own.
	Like string
	// Auth is where the key goes.
	Auth Auth
	// Region is what SigV4 signs for where Base has no {place}, which is one.
	Region string
}

// BuiltinProviders are the providers that need no configuration but a key.
func BuiltinProviders() []Provider {
	return []Provider{
		{Name: "openai", Base: "https://api.openai.com"},
		{Name: "anthropic", Base: "https://api.anthropic.com", Auth: XAPIKey},
		{Name: "gemini", Base: "https://generativelanguage.googleapis.com", Auth: GoogAPIKey},
		{Name: "vertex", Base: "https://{place}-aiplatform.googleapis.com"},
		{Name: "bedrock", Base: "https://bedrock-runtime.{place}.amazonaws.com", Auth: SigV4},
		{Name: "azure", Base: "https://{place}.openai.azure.com", Auth: APIKey},
		{Name: "mistral", Base: "https://api.mistral.ai"},
		{Name: "cohere", Base: "https://api.cohere.com"},
		{Name: "deepseek", Base: "https://api.deepseek.com"},
		{Name: "xai", Base: "https://api.x.ai"},
		{Name: "groq", Base: "https://api.groq.com"},
		{Name: "openrouter", Base: "https://openrouter.ai"},
	}
}

// ErrProvider is what every error about an upstream matches.
var ErrProvider = errors.New("proxy: upstream")

// ParseProvider reads "NAME=URL", which changes where a known provider is or adds
// an OpenAI-compatible one. Behind the URL, separated by blanks, may stand
// auth=bearer|x-api-key|x-goog-api-key|api-key|sigv4, like=HOST and, for sigv4,
// region=REGION.
func ParseProvider(text string, known []Provider) ([]Provider, error) {
	name, rest, ok := strings.Cut(text, "=")
	words := strings.Fields(rest)
	if !ok || len(words) == 0 {
		return nil, fmt.Errorf("%w: %q is not NAME=URL", ErrProvider, text)
	}
	v := Provider{Name: name}
	i := slices.IndexFunc(known, func(p Provider) bool { return p.Name == name })
	if i >= 0 {
		v = known[i]
		if v.Like == "" {
			v.Like = v.host("")
		}
	}
	v.Base = strings.TrimSuffix(words[0], "/")
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		at := slices.IndexFunc(authHeaders[:], func(h string) bool { return strings.EqualFold(h, value) })
		switch {
		case key == "like" && value != "":
			v.Like = value
		case key == "region" && plainWord(value):
			v.Region = value
		case key == "auth" && value == "bearer":
			v.Auth = Bearer
		case key == "auth" && value == "sigv4":
			v.Auth = SigV4
		case key == "auth" && at > 0:
			v.Auth = Auth(at)
		default:
			return nil, fmt.Errorf("%w: %s: %q is not auth=bearer|x-api-key|x-goog-api-key|api-key|sigv4, like=HOST or region=REGION", ErrProvider, name, word)
		}
	}
	out := slices.Clone(known)
	if i >= 0 {
		out[i] = v
	} else {
		out = append(out, v)
	}
	return out, errors.Join(checkProviders(out)...)
}

// host is the upstream's host.
func (v *Provider) host(where string) string {
	u, err := url.Parse(strings.ReplaceAll(v.Base, place, where))
	if err != nil {
		return ""
	}
	return u.Hostname()
}

func checkProviders(list []Provider) (errs []error) {
	seen := map[string]bool{}
	for i := range list {
		v := &list[i]
		u, err := url.Parse(strings.ReplaceAll(v.Base, place, "x"))
		switch {
		case !plainWord(v.Name) || seen[v.Name] || v.Name == "v1" || v.Name == "v1beta":
			errs = append(errs, fmt.Errorf("%w: %q is no name, or stands twice", ErrProvider, v.Name))
		case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
			errs = append(errs, fmt.Errorf("%w: %s: not a URL of scheme, host and path", ErrProvider, v.Name))
		case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
			errs = append(errs, fmt.Errorf("%w: %s: must be https, or http on loopback: a key is sent to it", ErrProvider, v.Name))
		case v.Auth >= numAuths:
			errs = append(errs, fmt.Errorf("%w: %s: no such auth", ErrProvider, v.Name))
		}
		seen[v.Name] = true
	}
	return errs
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// plainWord is 1 to 63 of a-z, 0-9 and dashes: it can stand in a host and a path.
func plainWord(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

// upstream is a Provider made ready.
type upstream struct {
	Provider
	base url.URL // with place still in its host
	open bool    // place is in the host
}

// routes find the upstream of a path.
type routes struct{ byName map[string]*upstream }

func newRoutes(list []Provider) routes {
	r := routes{map[string]*upstream{}}
	for _, v := range list {
		// checkProviders has parsed it.
		u, err := url.Parse(strings.ReplaceAll(v.Base, place, "place"))
		if err != nil {
			continue
		}
		up := &upstream{Provider: v, base: *u, open: strings.Contains(v.Base, place)}
		r.byName[v.Name] = up
	}
	return r
}

// target is where a request goes.
type target struct {
	up    *upstream
	place string // region or resource, "" for none
	path  string // escaped, below the base
	call  usage.Call
}

// find reads the path of a request: /PROVIDER/…, or the provider's own path, which
// begins with its version.
func (r routes) find(req *http.Request) (t target, ok bool) {
	path := req.URL.EscapedPath()
	first, rest := cutSegment(path)
	if t.up = r.byName[first]; t.up != nil {
		t.path = rest
	} else if t.up = r.byName[native(first, path, req.Header)]; t.up != nil {
		t.path = path
	} else {
		return t, false
	}
	host := t.up.Like
	if t.up.open {
		if t.place, t.path = cutSegment(t.path); !plainWord(t.place) {
			return t, false
		}
	}
	if host == "" {
		host = t.up.host(t.place)
	}
	if climbs(t.path) {
		return t, false
	}
	t.call = usage.Detect(req.Method, host, t.path)
	return t, true
}

// climbs reports a path, escaped or not, that a provider may take for another one
// than the one that is judged: it has a segment that is empty, "." or "..".
func climbs(path string) bool {
	plain, err := url.PathUnescape(path)
	return err != nil || strings.Contains(plain, "//") || strings.Contains(plain+"/", "/./") || strings.Contains(plain+"/", "/../")
}

// cutSegment takes the first part of a path off.
func cutSegment(path string) (first, rest string) {
	path = strings.TrimPrefix(path, "/")
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

// ProviderHeader names the upstream of a path without one: any OpenAI-compatible
// provider under the base URL /v1.
const ProviderHeader = "X-Tallystick-Provider"

// native is the provider of a path that begins with a version.
func native(first, path string, h http.Header) string {
	switch {
	case first == "v1beta" || first == "v1alpha":
		return "gemini"
	case first != "v1":
		return ""
	case h.Get(ProviderHeader) != "":
		return h.Get(ProviderHeader)
	case strings.HasPrefix(path, "/v1/messages") || h.Get("Anthropic-Version") != "":
		return "anthropic"
	default:
		return "openai"
	}
}

// url is the address of the target below base. query is the client's, without our
// token. A base that ends in the version that the path begins with, as clients of
// OpenAI are configured, has it once.
func (t *target) url(u url.URL, query string) *url.URL {
	if t.up.open && u.Host == t.up.base.Host { // a tenant's own address has no place in it
		u.Host = strings.Replace(u.Host, "place", t.place, 1)
	}
	// Opaque would keep the escaping too, but not every transport takes it.
	base := u.EscapedPath()
	if version := path.Base(base); isVersion(version) && strings.HasPrefix(t.path, "/"+version+"/") {
		base = strings.TrimSuffix(base, "/"+version)
	}
	escaped := base + t.path
	if plain, err := url.PathUnescape(escaped); err == nil {
		u.Path, u.RawPath = plain, escaped
	} else {
		u.Path, u.RawPath = escaped, ""
	}
	u.RawQuery = query
	return &u
}

// isVersion reports whether part of a path is one of an API, as v1 and v1beta are.
func isVersion(s string) bool { return len(s) > 1 && s[0] == 'v' && s[1] >= '0' && s[1] <= '9' }

// operations names what a dialect does.
func operation(c usage.Call, path string) string {
	switch {
	case strings.HasSuffix(path, "mbeddings") || strings.HasSuffix(path, "mbedContent") || strings.HasSuffix(path, "Contents") || strings.HasSuffix(path, "/embed"):
		return "embeddings"
	case c.Dialect == usage.None:
		return "other"
	case c.Dialect == usage.VertexPredict && !strings.Contains(c.Model, "embed"):
		return "predict"
	case c.Dialect == usage.VertexPredict:
		return "embeddings"
	case c.Dialect == usage.OpenAIAudio:
		return "audio"
	case c.Dialect == usage.OpenAIImages:
		return "images"
	case strings.HasSuffix(path, "/rerank"):
		return "rerank"
	case strings.HasSuffix(path, "/completions") && !strings.HasSuffix(path, "/chat/completions"):
		return "completions"
	default:
		return "chat"
	}
}
