package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A gateway may write the provider's answer anew, but not change what it says.
func TestGatewayMustGiveTheProvidersAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		wrong  bool
	}{
		"the same":       {200, benchChatAnswer, false},
		"written anew":   {200, strings.ReplaceAll(benchChatAnswer, `,"`, `, "`), false},
		"other text":     {200, strings.Replace(benchChatAnswer, "Lyon", "Ghent", 1), true},
		"other tokens":   {200, strings.Replace(benchChatAnswer, `"prompt_tokens":71`, `"prompt_tokens":70`, 1), true},
		"another call":   {200, strings.Replace(benchChatAnswer, "chatcmpl-9", "chatcmpl-8", 1), true},
		"an error":       {502, benchChatAnswer, true},
		"not JSON":       {200, "ok", true},
		"nothing at all": {200, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			defer srv.Close()
			p := &proxyPart{name: "it", url: srv.URL}
			if err := p.checkAnswer(t.Context()); (err != nil) != c.wrong {
				t.Errorf("checkAnswer = %v", err)
			}
		})
	}
}

func TestGatewayThatEndsSaysWhy(t *testing.T) {
	g := &gateway{proxyPart: proxyPart{name: "it", url: "http://127.0.0.1:1"}}
	err := g.start(t.Context(), t.TempDir(), []string{"sh", "-c", "echo no such setting; exit 3"})
	if err == nil || !strings.Contains(err.Error(), "no such setting") {
		t.Errorf("start = %v", err)
	}
}

func TestGatewayThatIsMissing(t *testing.T) {
	g := &gateway{proxyPart: proxyPart{name: "it"}}
	if err := g.start(t.Context(), t.TempDir(), []string{"no-such-program"}); err == nil || !strings.Contains(err.Error(), "it needs no-such-program") {
		t.Errorf("start = %v", err)
	}
	err := (&benchRun{out: io.Discard, figures: map[string]string{}}).benchGateways(t.Context(), t.TempDir())
	if !errors.Is(err, errNoGateways) {
		t.Errorf("benchGateways = %v", err)
	}
}

// Who is interrupted while a gateway starts leaves none of its processes behind: the
// last that could write to the pipe is gone.
func TestGatewayLeavesNothingBehind(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	name := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := make(chan *os.File)
	go func() {
		defer cancel() // the worker runs
		f, err := os.Open(name)
		if err != nil {
			t.Error(err)
		}
		go func() { pipe <- f }()
	}()
	g := &gateway{proxyPart: proxyPart{name: "it", url: "http://127.0.0.1:1"}}
	if err := g.start(ctx, dir, []string{"sh", "-c", "sleep 600 >../pipe & wait"}); err == nil {
		t.Fatal("it started")
	}
	f := <-pipe
	defer f.Close()
	if _, err := io.ReadAll(f); err != nil {
		t.Error(err)
	}
}
