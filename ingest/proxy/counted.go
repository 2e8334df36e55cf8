package proxy

import (
	"bytes"
	"encoding/json"

	"github.com/tallystick/tallystick/ingest/usage"
)

// maxPrompts bounds the requests' bodies that are held, of all calls together, until
// it is known that their providers state usage. Beyond it prompts are estimated.
const maxPrompts = 64 << 20

// holdPrompt keeps a copy of a request whose tokens can be counted, for the case that
// its provider states none: at most usage.MaxText bytes, until the event is made.
func (x *exchange) holdPrompt(b []byte) {
	n := int64(len(b))
	if n == 0 || n > usage.MaxText || !usage.Countable(x.to.call.Dialect, x.call.Model) {
		return
	}
	if x.p.prompts.Add(n) > maxPrompts {
		x.p.prompts.Add(-n)
		return
	}
	x.prompt = bytes.Clone(b)
}

// dropPrompt gives it up.
func (x *exchange) dropPrompt() {
	x.p.prompts.Add(-int64(len(x.prompt)))
	clear(x.prompt)
	x.prompt = nil
}

// asksBackground reports a request of a background response.
func asksBackground(b []byte) bool {
	if !bytes.Contains(b, []byte(`"background"`)) {
		return false
	}
	var ask struct {
		Background bool `json:"background"`
	}
	return json.Unmarshal(b, &ask) == nil && ask.Background
}
