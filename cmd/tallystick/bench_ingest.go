package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/load"
	"github.com/tallystick/tallystick/internal/oracle"
	"github.com/tallystick/tallystick/internal/tenant"
)

// anyKeys has keys for every tenant, and seals with those of one.
type anyKeys struct{ ring *keyring.Ring }

const benchTenant tenant.ID = "bench"

// newAnyKeys makes a keyring in dir.
func newAnyKeys(dir string) (anyKeys, error) {
	ring, err := keyring.Open(filepath.Join(dir, "keys"), nil)
	if err != nil {
		return anyKeys{}, err
	}
	_, err = ring.Create(benchTenant)
	return anyKeys{ring}, err
}

func (k anyKeys) Seal(dst []byte, _ tenant.ID, p keyring.Purpose, at keyring.Place, plaintext []byte) ([]byte, error) {
	return k.ring.Seal(dst, benchTenant, p, at, plaintext)
}

func (k anyKeys) Epoch(_ tenant.ID, p keyring.Purpose) uint32 { return k.ring.Epoch(benchTenant, p) }

func (anyKeys) Derive(id tenant.ID, p keyring.Purpose, _ uint32) ([keyring.KeyBytes]byte, error) {
	return sha256.Sum256([]byte(string(p) + "/" + string(id))), nil
}

// benchToken is the one token of the benchmark's edge.
const benchToken = "benchmark-token-of-no-worth"

// benchIngest measures the edge's CPU per event: HTTP handler, decoding,
// validation, content MAC and encoding, on requests of 1,000 events, with a log
// that acknowledges at once. The connection and Kafka are measured end to end.
func (r *benchRun) benchIngest(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "tallystick-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	keys, err := newAnyKeys(dir)
	if err != nil {
		return err
	}
	defer keys.ring.Close()
	edge, err := ingest.New(nowhere{}, keys, authn.NewStatic(benchToken, authn.Principal{AllTenants: true, Scopes: authn.Ingest}),
		ingest.Options{Topic: "events", EdgeID: "bench"})
	if err != nil {
		return err
	}
	r.printf("ingest (requests of 1000 events)")
	for _, f := range []struct {
		format      load.Format
		contentType string
	}{{load.Protobuf, "application/x-protobuf"}, {load.JSON, "application/json"}} {
		body, err := ingestBody(f.format)
		if err != nil {
			return err
		}
		cpu, err := r.ingestCPU(ctx, edge, body, f.contentType)
		if err != nil {
			return err
		}
		r.printf("  %-10s cpu us/event %.2f", f.format, cpu)
		if f.format == load.Protobuf {
			r.set("ingest_cpu_us", "%.2f", cpu)
		}
	}
	return nil
}

// ingestBody is one request of generated events.
func ingestBody(format load.Format) ([]byte, error) {
	var events [][]byte
	_, err := load.Events(load.Options{Events: 1000, Format: format, Seed: 1, History: time.Hour}, func(encoded []byte, _ *oracle.Outcome) error {
		events = append(events, bytes.Clone(encoded))
		return nil
	})
	if err != nil {
		return nil, err
	}
	if format == load.JSON {
		return fmt.Appendf(nil, "[%s]", bytes.Join(events, []byte(","))), nil
	}
	var batch []byte // tallystick.v1.EventBatch
	for _, e := range events {
		batch = protowire.AppendBytes(protowire.AppendTag(batch, 1, protowire.BytesType), e)
	}
	return batch, nil
}

// ingestCPU is the least CPU per event of several rounds, in microseconds.
func (r *benchRun) ingestCPU(ctx context.Context, edge *ingest.Edge, body []byte, contentType string) (float64, error) {
	rounds, requests := 10, 200
	if r.short {
		rounds, requests = 3, 20
	}
	handler, least := edge.Handler(), 0.0
	for range rounds {
		cpu := selfCPU()
		for range requests {
			req := httptest.NewRequestWithContext(ctx, http.MethodPost, ingest.EventsPath, bytes.NewReader(body))
			req.Header.Set("Content-Type", contentType)
			req.Header.Set("Authorization", "Bearer "+benchToken)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, req)
			if w.Code != http.StatusAccepted {
				return 0, fmt.Errorf("the edge answered %d: %s", w.Code, w.Body)
			}
		}
		if per := float64((selfCPU() - cpu).Microseconds()) / float64(requests*1000); least == 0 || per < least {
			least = per
		}
	}
	return least, nil
}
