package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// faultHTTP makes the requests of the tests: their answers are looked at whole,
// which package client does not give.
var faultHTTP = &http.Client{Timeout: 15 * time.Second}

// ask makes one request; a server that does not answer is status 0.
func (l *faultLoad) ask(method, path, contentType, body string) (status int, header http.Header, text string) {
	req, err := http.NewRequest(method, l.srv.url()+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err.Error()
	}
	req.Header.Set("Authorization", "Bearer "+l.srv.token)
	req.Header.Set("Content-Type", contentType)
	resp, err := faultHTTP.Do(req)
	if err != nil {
		return 0, http.Header{}, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, http.Header{}, err.Error()
	}
	return resp.StatusCode, resp.Header, string(b)
}

// report asks for the totals of the hot tenant.
func (l *faultLoad) report() (int, http.Header, string) {
	return l.ask(http.MethodPost, "/v1/reports/summary:query", "application/json",
		fmt.Sprintf(`{"tenant_id":"fault-%d-0001","window":{"name":"all"}}`, l.srv.seed))
}

// ready asks /readyz for its status and each dependency's state.
func (l *faultLoad) ready() (int, map[string]string) {
	code, _, body := l.ask(http.MethodGet, "/readyz", "", "")
	var r struct {
		Dependencies []struct{ Name, State string }
	}
	_ = json.Unmarshal([]byte(body), &r) // no answer has no states
	states := map[string]string{}
	for _, d := range r.Dependencies {
		states[d.Name] = d.State
	}
	return code, states
}
