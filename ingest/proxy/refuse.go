package proxy

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
)

// refusal is why a call is not forwarded, or was forwarded and not answered.
type refusal struct {
	code int
	kind string // of the event's error_type and of the answer
	text string // for the client
	// status is the event's, "" is error; policy and reason are its decision's.
	status, policy, reason string
	wait                   time.Duration // Retry-After, 0 is none
	lasting                bool          // trying again cannot help soon
	cause                  error         // for the log
	// sent says that the provider may have worked on the call.
	sent bool
}

// unknown is the refusal of a call about which something cannot be told now: what
// cannot be checked is not forwarded.
func unknown(text string, cause error) *refusal {
	return &refusal{code: http.StatusServiceUnavailable, kind: "unavailable", text: text, wait: time.Second, cause: cause}
}

// refuse answers the client and keeps the event, first. The error is errCut.
func (x *exchange) refuse(no *refusal) error {
	if no.cause != nil {
		x.p.quiet.Do(func() {
			x.p.opts.Logger.WarnContext(x.ctx, "proxy: a call was refused", "kind", no.kind, "err", no.cause)
		})
	}
	if x.id != "" && x.metered {
		x.p.refused.Add(1)
		if err := x.keepRefusal(no); err != nil && !x.p.opts.FailOpen && no.sent {
			return errCut
		}
	}
	h := x.w.Header()
	h["Content-Type"] = []string{"application/json"}
	if no.wait > 0 {
		h["Retry-After"] = []string{strconv.Itoa(max(1, int((no.wait + time.Second - 1).Seconds())))}
	}
	if no.lasting { // OpenAI's and Anthropic's SDKs would try a 429 again
		h["X-Should-Retry"] = []string{"false"}
	}
	body := newErrorBody(no)
	if x.to.up != nil && x.to.up.Auth == SigV4 { // where AWS's SDKs look
		h["X-Amzn-Errortype"] = []string{body.Error.Type}
		body.Message = body.Error.Message
	}
	if no.code == http.StatusUnauthorized {
		h["Www-Authenticate"] = []string{"Bearer"}
	}
	x.w.WriteHeader(no.code)
	// The client may have gone; nobody else would learn of it.
	_ = json.NewEncoder(x.w).Encode(body)
	return nil
}

// errorBody is an error in the form of every provider's SDK at once: OpenAI and
// Gemini read error.message, Anthropic's SDK error.type beside type. AWS's have message
// at the top.
type errorBody struct {
	Type    string `json:"type"`
	Message string `json:"message,omitempty"`
	Error   struct {
		Type    string `json:"type"`
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

func newErrorBody(no *refusal) (b errorBody) {
	b.Type = "error"
	b.Error.Type, b.Error.Code, b.Error.Message = "tallystick_"+no.kind, no.kind, "tallystick: "+no.text
	return b
}

// keepRefusal makes the event of a call that got no answer.
func (x *exchange) keepRefusal(no *refusal) error {
	ev := &x.events[0]
	x.fill(ev)
	ev.HTTPStatus, ev.ErrorType, ev.Status = int64(no.code), no.kind, no.status
	if ev.Status == "" {
		ev.Status = event.StatusError
	}
	if no.policy != "" {
		ev.DecisionAction, ev.DecisionPolicy, ev.DecisionReason = "block", clip(no.policy), clip(no.reason)
		if ev.Status == event.StatusKilled {
			ev.DecisionAction = "kill"
		}
	}
	if no.sent { // nobody says what it used: the provider may have read the prompt
		ev.Tokens[tokens.Input], ev.Estimated = x.call.PromptTokens, true
	}
	return x.keep(ev)
}
