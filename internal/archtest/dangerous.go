package archtest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// dangerous are packages of the standard library and beside it that the program
// does not use, or only in the named places. Tests may.
var dangerous = []struct {
	packages []string
	homes    []string // "/…" for packages below too
	files    string   // path.Match of further files that may
	reason   string
}{
	{
		[]string{"crypto/md5", "crypto/sha1", "crypto/des", "crypto/rc4", "golang.org/x/crypto/md4", "golang.org/x/crypto/ripemd160"},
		nil, "", "it is broken; the inventory of cryptography in docs/security.md has what we use",
	},
	{
		[]string{"math/rand", "math/rand/v2"}, []string{"internal/load"}, "cmd/tallystick/smoke*.go",
		"what must not be guessed comes from crypto/rand; a load wants a seed",
	},
	{
		[]string{"os/exec"}, []string{"internal/embedded/…", "internal/gpu"}, "cmd/tallystick/*_server.go",
		"child processes are the embedded engines', the GPU vendors' tools that the agent reads, and our own program for the smoke test and the proxy's benchmark, and the gateways beside it there; nothing else is ever run",
	},
	{
		[]string{"net/http/pprof", "expvar", "plugin"}, nil, "",
		"a door for debugging is a door",
	},
	{
		[]string{"encoding/xml", "encoding/gob", "text/template", "html/template"}, []string{"internal/embedded/chdb", "internal/gpu"}, "",
		"hostile input becomes entities, types or code there; only the engine's own configuration is written so, and nvidia-smi's output read token by token",
	},
}

// dangerousRule keeps the table above.
func dangerousRule(f *File, to string) string {
	if f.Test || within(f.Package, generated) {
		return ""
	}
	for _, d := range dangerous {
		if !slices.Contains(d.packages, to) {
			continue
		}
		named, err := path.Match(d.files, f.Path)
		if within(f.Package, d.homes) || (err == nil && named) {
			return ""
		}
		if len(d.homes) == 0 {
			return fmt.Sprintf("nothing imports %s: %s", to, d.reason)
		}
		return fmt.Sprintf("%s lives in %s: %s", to, strings.Join(d.homes, ", "), d.reason)
	}
	return ""
}
