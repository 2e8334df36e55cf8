package web

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
)

func built(t *testing.T) http.Handler {
	t.Helper()
	return handlerOf(t, fstest.MapFS{
		"index.html":             {Data: []byte("<!doctype html><title>page</title>")},
		"favicon.svg":            {Data: []byte("<svg/>")},
		"assets/index-a1b2c3.js": {Data: []byte(strings.Repeat("const page = 1;\n", 64))},
		".gitkeep":               {Data: nil},
		"notes.txt":              {Data: []byte("not of the page")},
	})
}

func handlerOf(t *testing.T, build fstest.MapFS) http.Handler {
	t.Helper()
	h, err := newHandler(build)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func ask(t *testing.T, h http.Handler, method, path string, headers ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func TestHandlerAnswers(t *testing.T) {
	tests := []struct {
		method, path string
		status       int
		contentType  string
		cache        string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8", cacheNever},
		{"HEAD", "/", 200, "text/html; charset=utf-8", cacheNever},
		{"GET", "/index.html", 200, "text/html; charset=utf-8", cacheNever},
		{"GET", "/favicon.svg", 200, "image/svg+xml", cacheNever},
		{"GET", "/assets/index-a1b2c3.js", 200, "text/javascript; charset=utf-8", cacheForever},
		{"GET", "/assets/index-000000.js", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/.gitkeep", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/notes.txt", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/assets/", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/../web.go", 404, "text/plain; charset=utf-8", ""},
		{"POST", "/", 405, "text/plain; charset=utf-8", ""},
	}
	for _, test := range tests {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			got := ask(t, built(t), test.method, test.path)
			if got.StatusCode != test.status {
				t.Errorf("status %d, want %d", got.StatusCode, test.status)
			}
			if ct := got.Header.Get("Content-Type"); ct != test.contentType {
				t.Errorf("content type %q, want %q", ct, test.contentType)
			}
			if cache := got.Header.Get("Cache-Control"); cache != test.cache {
				t.Errorf("cache control %q, want %q", cache, test.cache)
			}
			checkSecure(t, got.Header)
		})
	}
}

func checkSecure(t *testing.T, header http.Header) {
	t.Helper()
	csp := header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
		if !strings.Contains(csp, want) {
			t.Errorf("policy %q lacks %q", csp, want)
		}
	}
	if strings.Contains(csp, "unsafe") || strings.ContainsAny(csp, "*\n") {
		t.Errorf("policy %q admits too much", csp)
	}
	if got := header.Get("X-Content-Type-Options"); got != "nosniff" {
		t.Errorf("X-Content-Type-Options %q", got)
	}
}

func TestHandlerCompressesForThoseWhoAccept(t *testing.T) {
	plain := ask(t, built(t), "GET", "/assets/index-a1b2c3.js")
	zipped := ask(t, built(t), "GET", "/assets/index-a1b2c3.js", "Accept-Encoding", "br, gzip;q=0.8")
	refused := ask(t, built(t), "GET", "/assets/index-a1b2c3.js", "Accept-Encoding", "gzip;q=0")
	if plain.Header.Get("Content-Encoding") != "" || refused.Header.Get("Content-Encoding") != "" {
		t.Error("compressed for a client that did not ask")
	}
	if zipped.Header.Get("Content-Encoding") != "gzip" {
		t.Fatal("not compressed for a client that asked")
	}
	if plain.Header.Get("ETag") == zipped.Header.Get("ETag") {
		t.Error("two forms have one ETag")
	}
	reader, err := gzip.NewReader(zipped.Body)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := io.ReadAll(plain.Body)
	if string(got) != string(want) {
		t.Error("the compressed form differs from the plain one")
	}
}

func TestHandlerAnswersNotModified(t *testing.T) {
	h := built(t)
	etag := ask(t, h, "GET", "/").Header.Get("ETag")
	if etag == "" {
		t.Fatal("no ETag")
	}
	if got := ask(t, h, "GET", "/", "If-None-Match", etag); got.StatusCode != http.StatusNotModified {
		t.Errorf("status %d, want 304", got.StatusCode)
	}
}

func TestHandlerWithoutBuildSaysSo(t *testing.T) {
	got := ask(t, handlerOf(t, fstest.MapFS{".gitkeep": {}}), "GET", "/")
	body, _ := io.ReadAll(got.Body)
	if got.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "npm run build") {
		t.Errorf("status %d, body %q", got.StatusCode, body)
	}
	checkSecure(t, got.Header)
}

// The embedded folder holds either nothing but its placeholder or a whole page.
func TestEmbeddedBuildIsWhole(t *testing.T) {
	h := Handler().(*handler)
	page, ok := h.files["/index.html"]
	if !ok {
		if len(h.files) != 0 {
			t.Fatalf("%d files without an index.html", len(h.files))
		}
		return
	}
	for part := range strings.SplitSeq(string(page.plain), `"`) {
		if strings.HasPrefix(part, "/") {
			if _, ok := h.files[part]; !ok {
				t.Errorf("the page names %s, which is not in the build", part)
			}
		}
	}
	if strings.Contains(string(page.plain), "<style") || strings.Contains(string(page.plain), "<script>") {
		t.Error("the page has inline code, which its policy refuses")
	}
}

func TestAcceptsGzip(t *testing.T) {
	tests := map[string]bool{
		"": false, "gzip": true, "GZIP": true, "br": false, "br, gzip": true, "gzip;q=0": false,
		"gzip; q=0.000": false, "gzip;q=0.5": true, "gzip;q=1": true, "x-gzip": false,
	}
	for accept, want := range tests {
		if got := acceptsGzip(accept); got != want {
			t.Errorf("%q: %v, want %v", accept, got, want)
		}
	}
}
