package load

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxAnswerBytes bounds what is read of an answer: a thousand refusals fit.
const maxAnswerBytes = 4 << 20

// ruleUnavailable marks an event that may be sent again as it is.
const ruleUnavailable = "unavailable"

// answer is the server's answer to a batch: SendEventsResponse, or a problem
// that carries its members.
type answer struct {
	Accepted wireInt   `json:"accepted"`
	Refusals []refusal `json:"refusals"`
	// Title and Type are set in a problem.
	Title string `json:"title"`
	Type  string `json:"type"`
}

type refusal struct {
	Index   wireInt `json:"index"`
	EventID string  `json:"event_id"`
	Field   string  `json:"field"`
	Rule    string  `json:"rule"`
}

// wireInt reads a 64-bit integer as protobuf's JSON form writes it, or bare.
type wireInt int64

func (v *wireInt) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseInt(string(bytes.Trim(b, `"`)), 10, 64)
	*v = wireInt(n)
	return err
}

// verdict is what an answer means for the request.
type verdict uint8

const (
	// settled: every event has its result in the answer.
	settled verdict = iota
	// partly: some events have, the others are to be sent again.
	partly
	// again: nothing is known; the same request is to be sent again.
	again
)

// readAnswer interprets an answer of n events. An error is final: sending the same
// request again cannot help. cause says why it is to be sent again.
func readAnswer(resp *http.Response, n int) (a answer, v verdict, wait time.Duration, cause, err error) {
	body, readErr := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	code := resp.StatusCode
	parsed := readErr == nil && json.Unmarshal(body, &a) == nil
	if retryable(code) {
		cause = fmt.Errorf("%w: status %d", errRetry, code)
		if parsed && code == http.StatusServiceUnavailable && a.complete(n) {
			return a, partly, retryAfter(resp), cause, nil
		}
		return a, again, retryAfter(resp), cause, nil
	}
	switch {
	case readErr != nil: // the connection broke in the answer: it may be counted or not
		return a, again, 0, fmt.Errorf("%w: the answer broke off", errRetry), nil
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return a, settled, 0, nil, fmt.Errorf("%w: status %d %s", ErrAuth, code, a.Title)
	case code == http.StatusOK || code == http.StatusAccepted || code == http.StatusBadRequest && len(a.Refusals) > 0:
		if !parsed || !a.complete(n) {
			return a, settled, 0, nil, fmt.Errorf("%w: status %d with an answer that does not account for %d events", ErrRefused, code, n)
		}
		if a.unavailable() > 0 {
			return a, partly, retryAfter(resp), fmt.Errorf("%w: some events are unavailable", errRetry), nil
		}
		return a, settled, 0, nil, nil
	default:
		return a, settled, 0, nil, fmt.Errorf("%w: status %d %s %s", ErrRefused, code, a.Title, a.Type)
	}
}

// retryable says whether the same request may fare better later.
func retryable(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// errRetry wraps the reasons for sending a request again.
var errRetry = errors.New("to be sent again")

// complete says whether the answer accounts for n events.
func (a *answer) complete(n int) bool {
	for i, r := range a.Refusals {
		if r.Index < 0 || int(r.Index) >= n || i > 0 && r.Index <= a.Refusals[i-1].Index {
			return false
		}
	}
	return int(a.Accepted)+len(a.Refusals) == n
}

func (a *answer) unavailable() (n int) {
	for i := range a.Refusals {
		if a.Refusals[i].Rule == ruleUnavailable {
			n++
		}
	}
	return n
}

// retryAfter is the header in seconds, at most maxRetryAfter; 0 without.
func retryAfter(resp *http.Response) time.Duration {
	s, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || s < 0 {
		return 0
	}
	return min(time.Duration(s)*time.Second, maxRetryAfter)
}
