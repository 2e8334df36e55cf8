package agent_test

import (
	"context"
	"crypto/tls"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/ingest/agent"
	"github.com/tallystick/tallystick/internal/agentauth"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// TestNoOptionAdmitsAnUnverifiedHello sets each option, one after the other and
// all together, to the most permissive value that its type has, and tries hellos
// and requests that prove nothing.
func TestNoOptionAdmitsAnUnverifiedHello(t *testing.T) {
	all := reflect.TypeFor[agent.Options]()
	loosen := func(o *agent.Options, i int) {
		f := reflect.ValueOf(o).Elem().Field(i)
		switch f.Interface().(type) {
		case string:
			f.SetString("telemetry")
		case bool:
			f.SetBool(true)
		case int, int32:
			f.SetInt(1000)
		case int64:
			f.SetInt(1 << 30)
		case time.Duration:
			f.SetInt(int64(time.Hour))
		case *tls.Config:
			f.SetZero() // plaintext
		case func(tenant.ID) bool:
			f.Set(reflect.ValueOf(func(tenant.ID) bool { return true }))
		case func() []tenant.ID, func(tenant.ID, string, authn.Peer), func(authn.Peer, string):
			f.SetZero()
		case func() time.Time:
			f.Set(reflect.ValueOf(func() time.Time { return time.Unix(1, 0) }))
		default:
			if all.Field(i).Name != "Logger" {
				t.Fatalf("%s has a type that this test does not know: say here how it could let an agent in", all.Field(i).Name)
			}
		}
	}
	for i := range all.NumField() + 1 {
		name := "all together"
		change := func(o *agent.Options) {
			for j := range all.NumField() {
				loosen(o, j)
			}
		}
		if i < all.NumField() {
			name = all.Field(i).Name
			change = func(o *agent.Options) { loosen(o, i) }
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, change)
			refuseUnverified(t, w)
			if w.Stats().Admitted != 0 || w.Stats().RefusedHellos == 0 {
				t.Errorf("stats %+v", w.Stats())
			}
		})
	}
}

// refuseUnverified tries what proves nothing.
func refuseUnverified(t *testing.T, w *world) {
	t.Helper()
	who := w.agent("acme", "agt_1")
	for name, change := range map[string]func(s *stream, h *pb.HelloProof){
		"an empty mac":   func(_ *stream, h *pb.HelloProof) { h.Mac = nil },
		"a mac of zeros": func(_ *stream, h *pb.HelloProof) { h.Mac = make([]byte, 32) },
		"a short mac":    func(_ *stream, h *pb.HelloProof) { h.Mac = h.Mac[:31] },
		"the secret of zeros": func(s *stream, h *pb.HelloProof) {
			agentauth.SignHello(&agentauth.Secret{}, s.challenge, s.on, h)
		},
		"another agent's secret": func(s *stream, h *pb.HelloProof) {
			other := w.agent("acme", "agt_2").Secret
			agentauth.SignHello(&other, s.challenge, s.on, h)
		},
		"another tenant's secret": func(s *stream, h *pb.HelloProof) {
			other := w.agent("umbrella", "agt_1").Secret
			agentauth.SignHello(&other, s.challenge, s.on, h)
		},
		"another challenge": func(s *stream, h *pb.HelloProof) {
			agentauth.SignHello(&s.who.Secret, make([]byte, 32), s.on, h)
		},
		"another connection": func(s *stream, h *pb.HelloProof) {
			agentauth.SignHello(&s.who.Secret, s.challenge, agentauth.Binding{1}, h)
		},
		"no tenant": func(s *stream, h *pb.HelloProof) {
			h.TenantId = ""
			agentauth.SignHello(&s.who.Secret, s.challenge, s.on, h)
		},
	} {
		s, err := open(t.Context(), w.dial(t), who, 1)
		if err != nil {
			t.Fatal(err)
		}
		h := s.proof()
		change(s, h)
		if err := s.greet(h); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
		s.cancel()
	}
	// Samples in place of a hello, and a request without a proof.
	s, err := open(t.Context(), w.dial(t), who, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.cancel()
	if err := s.say(1, sample(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("samples without a hello: %v", err)
	}
	r := request(who, 1, time.Now(), heartbeat(1, 1))
	r.Mac = nil
	if _, err := pb.NewAgentGatewayClient(w.dial(t)).SendTelemetry(t.Context(), r); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a request without a proof: %v", err)
	}
	if len(w.topic.batches) != 0 {
		t.Errorf("the topic has %v", w.topic.batches)
	}
}

// TestOnlyAProofMakesAnAgent: the type that speaks for an agent is made in the
// one function that has checked a proof, and no build leaves that out.
func TestOnlyAProofMakesAnAgent(t *testing.T) {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	made := map[string]int{}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		src, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(src), "//go:build") {
			t.Errorf("%s is not in every build", f.Name())
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.Name(), src, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				if lit, ok := n.(*ast.CompositeLit); ok && len(lit.Elts) > 0 {
					if id, ok := lit.Type.(*ast.Ident); ok && id.Name == "admitted" {
						made[fn.Name.Name]++
					}
				}
				return true
			})
		}
	}
	if len(made) != 1 || made["prove"] != 1 {
		t.Errorf("admitted is made in %v; only prove may", made)
	}
}

// TestRelayedHello: a proof made for one connection is worth nothing on another,
// even for the right challenge.
func TestRelayedHello(t *testing.T) {
	w := newWorld(t, nil)
	who := w.agent("acme", "agt_1")
	victim, err := open(t.Context(), w.dial(t), who, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer victim.cancel()
	relay, err := open(t.Context(), w.dial(t), who, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer relay.cancel()
	if victim.on == relay.on || victim.on == (agentauth.Binding{}) {
		t.Fatal("two connections have one exporter")
	}
	relay.on = victim.on // the victim answers the relay's challenge on its own connection
	if err := relay.greet(relay.proof()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a relayed hello: %v", err)
	}
}

func TestTransports(t *testing.T) {
	w := newWorld(t, nil)
	who := w.agent("acme", "agt_1")
	for name, creds := range map[string]credentials.TransportCredentials{
		"plaintext": insecure.NewCredentials(),
		"TLS 1.2":   credentials.NewTLS(&tls.Config{RootCAs: w.roots, MaxVersion: tls.VersionTLS12}), //nolint:gosec // that it is refused is the test
	} {
		conn, err := grpc.NewClient(w.addr, grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(t.Context(), conn, who, 1); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
	plain := newWorld(t, func(o *agent.Options) { o.TLS = nil })
	s := plain.connect(t, plain.agent("acme", "agt_1"), 1)
	if s.on != (agentauth.Binding{}) {
		t.Error("a plaintext connection has an exporter")
	}
	if err := s.say(1, sample(1)); err != nil {
		t.Fatal(err)
	}
	s.until(t, ackOf(1))
}

func TestClientCertificates(t *testing.T) {
	own, _, ownFile := certificate(t)
	other, _, _ := certificate(t)
	pair := func(c *tls.Config) tls.Certificate {
		got, err := c.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return *got
	}
	for _, c := range []struct {
		mode  string
		certs []tls.Certificate
		ok    bool
	}{
		{agent.ClientCertsOff, nil, true},
		{agent.ClientCertsOptional, nil, true},
		{agent.ClientCertsOptional, []tls.Certificate{pair(own)}, true},
		{agent.ClientCertsOptional, []tls.Certificate{pair(other)}, false},
		{agent.ClientCertsRequired, nil, false},
		{agent.ClientCertsRequired, []tls.Certificate{pair(own)}, true},
		{agent.ClientCertsRequired, []tls.Certificate{pair(other)}, false},
	} {
		w := newWorld(t, func(o *agent.Options) {
			var err error
			if o.TLS, err = agent.WithClientCerts(o.TLS, c.mode, ownFile); err != nil {
				t.Fatal(err)
			}
		})
		who := w.agent("acme", "agt_1")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := connect(ctx, w.dial(t, c.certs...), who, 1)
		if (err == nil) != c.ok {
			t.Errorf("%s with %d certificates: %v", c.mode, len(c.certs), err)
		}
		if c.ok { // a certificate is no proof
			who.Secret[0] ^= 1
			if _, err := connect(ctx, w.dial(t, c.certs...), who, 1); status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s with a certificate and no secret: %v", c.mode, err)
			}
		}
		cancel()
	}
	for _, bad := range [][2]string{{agent.ClientCertsRequired, "/nonexistent"}, {"sometimes", ownFile}, {agent.ClientCertsRequired, "admission_test.go"}} {
		if _, err := agent.WithClientCerts(own, bad[0], bad[1]); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	w := newWorld(t, func(o *agent.Options) { o.PerAddress = 2 })
	first, second := w.connect(t, w.agent("acme", "agt_1"), 1), w.connect(t, w.agent("acme", "agt_2"), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := connect(ctx, w.dial(t), w.agent("acme", "agt_3"), 1); status.Code(err) != codes.Unavailable {
		t.Errorf("a third connection: %v", err)
	}
	if w.Stats().RefusedConnections == 0 {
		t.Error("it is not counted")
	}
	for _, s := range []*stream{first, second} {
		if err := s.say(1, sample(1)); err != nil {
			t.Fatal(err)
		}
		s.until(t, ackOf(1))
	}
}

func TestSilentConnectionsEnd(t *testing.T) {
	w := newWorld(t, func(o *agent.Options) { o.HelloTimeout = 50 * time.Millisecond })
	s, err := open(t.Context(), w.dial(t), w.agent("acme", "agt_1"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.cancel()
	if _, err := s.Recv(); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a stream without a hello: %v", err)
	}
}

// TestSameAnswerForTheUnknown: an agent that does not exist, one that is revoked
// and a wrong secret get the very same answer, and for none of them but the one
// who knows a secret is the register asked.
func TestSameAnswerForTheUnknown(t *testing.T) {
	w := newWorld(t, nil)
	known, revoked := w.agent("acme", "agt_1"), w.agent("acme", "agt_2")
	w.register.revoke(revoked.Key)
	wrong := known
	wrong.Secret[5] ^= 1
	unknown := agentauth.Credential{Key: agentauth.Key{Tenant: "nobody", Agent: "agt_9"}, Secret: known.Secret}
	var answers []*status.Status
	for _, who := range []agentauth.Credential{wrong, unknown, revoked} {
		_, err := connect(t.Context(), w.dial(t), who, 1)
		answers = append(answers, status.Convert(err))
	}
	for _, a := range answers {
		if a.Code() != codes.Unauthenticated || !proto.Equal(a.Proto(), answers[0].Proto()) {
			t.Errorf("answers %v and %v", a, answers[0])
		}
	}
	if n := w.register.asked(); n != 1 {
		t.Errorf("the register was asked of %d agents, want the one that proved itself", n)
	}
}
