// Package web serves the dashboard: the built page of this folder, embedded in
// the binary, so that it works without internet and without any file beside it.
//
// It promises that nothing but the page's own scripts and styles can run in it
// (a content security policy without inline code, in csp.txt, which the page's
// browser tests use too), that files with a hash in their name are cached
// forever and the document never without asking, and that a binary built before
// the page still starts and says what is missing. It never reads the token: the
// page keeps it in its browser tab and sends it to the API only.
package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed all:dist
var dist embed.FS

//go:embed csp.txt
var policy string

//go:embed unbuilt.html
var unbuilt []byte

const (
	cacheForever  = "public, max-age=31536000, immutable"
	cacheNever    = "no-cache"
	hashedPrefix  = "/assets/"
	contentTypeOf = "Content-Type"
)

// contentTypes are the kinds of file a build may hold; the system's table of
// types is not asked, so that answers do not differ between hosts.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".svg":  "image/svg+xml",
}

// Handler serves the page at "/" and its files beside it, to GET and HEAD; any
// other path is 404. Without a build "/" answers 503 and says how to make one.
// The handler keeps each file in memory twice, plain and compressed.
func Handler() http.Handler {
	build, err := fs.Sub(dist, "dist")
	if err != nil {
		panic(err) // the folder is embedded above: a binary without it does not build
	}
	h, err := newHandler(build)
	if err != nil {
		panic(err) // reading embedded files does not fail
	}
	return h
}

type file struct {
	plain, gzipped []byte
	contentType    string
	cacheControl   string
	etag           string
}

type handler struct {
	files map[string]file
}

func newHandler(build fs.FS) (*handler, error) {
	h := &handler{files: map[string]file{}}
	err := fs.WalkDir(build, ".", func(name string, entry fs.DirEntry, err error) error {
		contentType, known := contentTypes[path.Ext(name)]
		if err != nil || entry.IsDir() || !known {
			return err
		}
		content, err := fs.ReadFile(build, name)
		if err != nil {
			return err
		}
		h.files["/"+name] = newFile("/"+name, content, contentType)
		return nil
	})
	if page, built := h.files["/index.html"]; built {
		h.files["/"] = page
	}
	return h, err
}

func newFile(name string, content []byte, contentType string) file {
	sum := sha256.Sum256(content)
	f := file{
		plain:        content,
		gzipped:      compress(content),
		contentType:  contentType,
		cacheControl: cacheNever,
		etag:         hex.EncodeToString(sum[:12]),
	}
	if strings.HasPrefix(name, hashedPrefix) {
		f.cacheControl = cacheForever
	}
	return f
}

func compress(content []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	// Writes to a buffer do not fail.
	_, _ = w.Write(content)
	_ = w.Close()
	return out.Bytes()
}

// ServeHTTP answers one request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	f, found := h.files[r.URL.Path]
	switch {
	case found:
		f.serve(w, r)
	case r.URL.Path == "/":
		w.Header().Set(contentTypeOf, contentTypes[".html"])
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write(unbuilt)
	default:
		http.NotFound(w, r)
	}
}

// secure sets what holds for every answer, errors included.
func secure(header http.Header) {
	header.Set("Content-Security-Policy", strings.TrimSpace(policy))
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
}

func (f file) serve(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set(contentTypeOf, f.contentType)
	header.Set("Cache-Control", f.cacheControl)
	header.Set("Vary", "Accept-Encoding")
	content, etag := f.plain, f.etag
	if len(f.gzipped) < len(f.plain) && acceptsGzip(r.Header.Get("Accept-Encoding")) {
		header.Set("Content-Encoding", "gzip")
		content, etag = f.gzipped, f.etag+"-gzip"
	}
	header.Set("ETag", `"`+etag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// acceptsGzip reads Accept-Encoding; a weight of zero is a refusal.
func acceptsGzip(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		name, weight, _ := strings.Cut(part, ";")
		if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
			continue
		}
		value := strings.TrimPrefix(strings.ReplaceAll(weight, " ", ""), "q=")
		return value == "" || strings.Trim(value, "0.") != ""
	}
	return false
}
