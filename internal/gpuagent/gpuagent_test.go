package gpuagent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/spool"
	"github.com/tallystick/tallystick/internal/testenv/testlog"
)

// drained waits until everything is acknowledged, a minute at most.
func drained(t *testing.T, a *Agent) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.Drain(ctx); err != nil {
		t.Fatalf("%v: %+v", err, a.Stats())
	}
}

func TestSamplesArrive(t *testing.T) {
	for _, transport := range []string{TransportStream, TransportUnary} {
		t.Run(transport, func(t *testing.T) {
			w := newWorld(t)
			a, _ := w.agent(t, transport, spool.Options{})
			a.SetInventory("590", []*pb.GpuDevice{{GpuUuid: "GPU-1"}})
			if err := a.Record(samples(0, 1200)); err != nil { // three frames
				t.Fatal(err)
			}
			stop := run(t, a)
			if err := a.Record(samples(1200, 3)); err != nil {
				t.Fatal(err)
			}
			drained(t, a)
			w.g.got(t, 1203)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			st := a.Stats()
			if st.EmittedSamples != 1203 || st.AckedSamples != 1203 || st.EmittedFrames != 4 || st.AckedFrames != 4 || st.State != "stopped" {
				t.Errorf("%+v", st)
			}
			// The goodbye has the last counts.
			seen := w.g.seen()
			if h := seen.heartbeat; h.GetEmittedSamples() != 1203 || h.GetAckedSamples() != 1203 || h.GetSpooledFrames() != 0 || len(h.GetLostSamples()) != 0 {
				t.Errorf("the last heartbeat: %v", h)
			}
			if seen.inventory.GetDriverVersion() != "590" || len(seen.inventory.GetDevices()) != 1 {
				t.Errorf("%v", seen.inventory)
			}
		})
	}
}

// TestHelloIsBoundToTheConnection: over TLS both sides put the connection's
// exporter into the proof, so that nobody in between can use the agent's hello.
func TestHelloIsBoundToTheConnection(t *testing.T) {
	server, agent := tlsPair(t, tls.VersionTLS13)
	w := newWorldOver(t, server, agent)
	a, _ := w.agent(t, TransportStream, spool.Options{})
	run(t, a)
	if err := a.Record(samples(0, 5)); err != nil {
		t.Fatal(err)
	}
	drained(t, a)
	w.g.got(t, 5)

	// A connection without an exporter worth binding to gets no proof.
	server, agent = tlsPair(t, tls.VersionTLS12)
	w = newWorldOver(t, server, agent)
	a, _ = w.agent(t, TransportStream, spool.Options{})
	conn, err := a.opts.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := a.stream(t.Context(), conn); !errors.Is(err, agentauth.ErrNotTLS13) || w.g.seen().hellos != 0 {
		t.Errorf("over TLS 1.2: %v", err)
	}
}

// tlsPair is a server's and an agent's side of TLS with a certificate of the test.
func tlsPair(t *testing.T, version uint16) (server, agent credentials.TransportCredentials) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	server = credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12, MaxVersion: version,
	})
	return server, credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
}

// An agent that would look less often than a sample counts for does not begin, and
// keeps what it has. One that runs when the server is set to less goes on, and says
// so at each connection.
func TestIntervalIsWhatCounts(t *testing.T) {
	w := newWorld(t)
	w.g.maxGap = 2 * time.Minute
	a, sp := w.agent(t, TransportStream, spool.Options{})
	a.opts.Interval = 5 * time.Minute
	if err := a.Record(samples(0, 5)); err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); !errors.Is(err, ErrInterval) || !strings.Contains(err.Error(), "at most 2m0s (gputime.max_gap_seconds") {
		t.Fatalf("it ran: %v", err)
	}
	if st := a.Stats(); st.SpooledFrames != 1 || w.g.seen().arrived != 0 {
		t.Errorf("%+v", st)
	}
	if err := sp.Close(); err != nil {
		t.Fatal(err)
	}

	var log testlog.Buffer
	a, _ = w.agent(t, TransportStream, spool.Options{})
	a.opts.Interval, a.opts.Log = 2*time.Minute, slog.New(slog.NewTextHandler(&log, nil))
	w.g.fate = func(seq int64) string {
		if seq == 2 {
			w.g.maxGap = time.Minute // under the gateway's lock
			return "cut"
		}
		return ""
	}
	stop := run(t, a)
	if err := a.Record(samples(5, 5)); err != nil {
		t.Fatal(err)
	}
	w.g.until(t, func() bool { return w.g.hellos >= 3 })
	if err := a.Record(samples(10, 5)); err != nil {
		t.Fatal(err)
	}
	drained(t, a)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.g.got(t, 15)
	if !strings.Contains(log.String(), `level=ERROR msg="agent: time is lost between two looks" interval=2m0s`) {
		t.Errorf("it says %s", log.String())
	}
}

// TestNothingIsLost has the gateway refuse, cut and delay at random, and the
// agent begin again in the same folder in between.
func TestNothingIsLost(t *testing.T) {
	w := newWorld(t)
	r := mathrand.New(mathrand.NewPCG(1, 2))
	w.g.fate = func(int64) string {
		switch n := r.IntN(20); {
		case n == 0:
			return "cut"
		case n < 3:
			return "delay"
		}
		return ""
	}
	sizes := mathrand.New(mathrand.NewPCG(3, 4)) // r is the gateway's
	made := 0
	var epoch int64
	for life := range 5 {
		a, sp := w.agent(t, TransportStream, spool.Options{})
		if st := a.Stats(); st.EmittedSamples != int64(made) {
			t.Fatalf("begun again: %+v, want %d samples", st, made)
		}
		if epoch != 0 && epoch != a.epoch {
			t.Errorf("epoch %d became %d", epoch, a.epoch)
		}
		epoch = a.epoch
		stop := run(t, a)
		for range 40 {
			n := 1 + sizes.IntN(30)
			if err := a.Record(samples(made, n)); err != nil {
				t.Fatal(err)
			}
			made += n
		}
		if life%2 == 1 {
			drained(t, a) // through cuts and connections anew
		}
		if err := stop(); err != nil { // in the middle of it, the other times
			t.Fatal(err)
		}
		if err := sp.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w.g.mu.Lock()
	w.g.fate = nil
	w.g.mu.Unlock()
	a, _ := w.agent(t, TransportStream, spool.Options{})
	stop := run(t, a)
	drained(t, a)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.g.got(t, made)
	if st := a.Stats(); st.EmittedSamples != int64(made) || st.AckedSamples != int64(made) || st.AckedFrames != 200 {
		t.Errorf("%+v, want %d samples in 200 frames", st, made)
	}
	t.Logf("%d samples in 200 frames over %d connections and 6 lives; %d frames arrived", made, w.g.seen().hellos, w.g.seen().arrived)
}

// TestFallsBackToRequests: streams do not get through.
func TestFallsBackToRequests(t *testing.T) {
	w := newWorld(t)
	w.g.noStreams = true
	a, _ := w.agent(t, TransportAuto, spool.Options{})
	run(t, a)
	if err := a.Record(samples(0, 10)); err != nil {
		t.Fatal(err)
	}
	drained(t, a)
	w.g.got(t, 10)
	if st, seen := a.Stats(), w.g.seen(); seen.hellos != 0 || seen.requests == 0 || st.State != "single requests" || st.Reconnects < streamFailures {
		t.Errorf("%d hellos, %d requests, %+v", seen.hellos, seen.requests, st)
	}
}

// TestRefusedForEver counts what the gateway never takes, and goes on.
func TestRefusedForEver(t *testing.T) {
	for _, transport := range []string{TransportStream, TransportUnary} {
		w := newWorld(t)
		w.g.fate = func(seq int64) string {
			if seq == 2 {
				return "invalid"
			}
			return ""
		}
		a, sp := w.agent(t, transport, spool.Options{})
		stop := run(t, a)
		for i := range 3 {
			if err := a.Record(samples(i, 1)); err != nil {
				t.Fatal(err)
			}
		}
		drained(t, a)
		stop()
		sp.Close()
		again, _ := w.agent(t, transport, spool.Options{}) // the counts outlive the process
		for _, a := range []*Agent{a, again} {
			if st := a.Stats(); st.RefusedFrames != 1 || st.RefusedSamples != 1 || st.AckedSamples != 3 || st.EmittedSamples != 3 {
				t.Errorf("%s: %+v", transport, st)
			}
		}
	}
}

// TestFullSpoolIsCounted: what finds no room is lost, and never in silence.
func TestFullSpoolIsCounted(t *testing.T) {
	w := newWorld(t)
	a, sp := w.agent(t, TransportStream, spool.Options{MaxBytes: spool.MinMaxBytes})
	var err error
	kept := 0
	for ; err == nil; kept += 500 {
		err = a.Record(samples(kept, 500))
	}
	kept -= 500
	if !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	a.Lost(LostCollector, 8)
	st := a.Stats()
	if st.LostSamples[LostSpoolFull] != 500 || st.LostSamples[LostCollector] != 8 || st.EmittedSamples != int64(kept) {
		t.Errorf("%+v, %d were kept", st, kept)
	}
	sp.Close() // killed: the counts are on disk already
	a, _ = w.agent(t, TransportStream, spool.Options{MaxBytes: spool.MinMaxBytes})
	run(t, a)
	drained(t, a)
	w.g.until(t, func() bool { return w.g.heartbeat.GetAckedSamples() == int64(kept) })
	if h := w.g.seen().heartbeat; h.LostSamples[LostSpoolFull] != 500 || h.LostSamples[LostCollector] != 8 || h.EmittedSamples != int64(kept) {
		t.Errorf("the heartbeat says %v", h)
	}
	if err := a.Record(samples(kept, 500)); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

// TestWrongSecret: the agent is not admitted, says so, and sends nothing.
func TestWrongSecret(t *testing.T) {
	w := newWorld(t)
	w.cred.Secret[0] ^= 1
	a, _ := w.agent(t, TransportAuto, spool.Options{})
	if err := a.Record(samples(0, 1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	conn, err := a.opts.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = a.stream(ctx, conn)
	if err == nil || !strings.Contains(plain(err), "Unauthenticated") || w.g.seen().arrived != 0 || a.toUnary != 0 {
		t.Errorf("%v; %d frames arrived", err, w.g.seen().arrived)
	}
	if p := a.pause(err); p < maxBackoff/2 {
		t.Errorf("tries again after %s: only a person can change this", p)
	}
}

// TestOlderSpoolIsRefused: a folder that was put back would give numbers a second
// time.
func TestOlderSpoolIsRefused(t *testing.T) {
	w := newWorld(t)
	w.g.acked = 5
	a, _ := w.agent(t, TransportStream, spool.Options{})
	if err := a.Record(samples(0, 1)); err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); !errors.Is(err, ErrAhead) {
		t.Errorf("%v", err)
	}
}

func TestForeignSpoolIsRefused(t *testing.T) {
	w := newWorld(t)
	sp, err := spool.Open(w.dir, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sp.Append(t.Context(), [][]byte{[]byte("something else")}); err != nil {
		t.Fatal(err)
	}
	defer sp.Close()
	if _, err := New(Options{Dial: w.agentDial, Credential: nil, Spool: sp}); err == nil {
		t.Error("made without a credential")
	}
	if _, err := New(Options{Dial: w.agentDial, Credential: w.credential, Spool: sp}); !errors.Is(err, ErrSpool) {
		t.Errorf("%v", err)
	}
	if _, err := New(Options{Dial: w.agentDial, Credential: w.credential, Spool: sp, Transport: "pigeon"}); err == nil {
		t.Error("by pigeon")
	}
}

func FuzzStoredFrame(f *testing.F) {
	f.Add(storedFrame(5, 1, []byte{1, 2}))
	f.Add([]byte{1, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		before, n, frame, err := parseStored(b)
		if err != nil {
			return
		}
		b2, n2, f2, err := parseStored(storedFrame(before, int(n), frame))
		if err != nil || b2 != before || n2 != n || string(f2) != string(frame) {
			t.Fatalf("%d %d %x became %d %d %x (%v)", before, n, frame, b2, n2, f2, err)
		}
	})
}

// A refusal that comes late never makes the agent skip frames that it has yet to
// send again.
func TestLateRefusalSkipsNothing(t *testing.T) {
	w := newWorld(t)
	a, _ := w.agent(t, TransportStream, spool.Options{})
	s := &session{a: a, wake: make(chan struct{}, 1), heartbeat: time.Second, next: 9}
	refuse := func(seq int64) {
		t.Helper()
		if err := s.refused(&pb.Refusal{Code: "ResourceExhausted", Seq: seq}); err != nil {
			t.Fatal(err)
		}
		s.ready()
	}
	refuse(4)
	if s.next != 4 {
		t.Fatalf("after the refusal of 4 the next is %d", s.next)
	}
	s.next = 6 // 4 and 5 were sent again
	refuse(8)
	if s.next != 6 {
		t.Errorf("a late refusal of 8 moved the next from 6 to %d", s.next)
	}
}
