package authn

import (
	"context"
	"crypto/sha256"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/tenant"
)

// BenchmarkAuthenticate is what every request pays: a cached token, told to the
// audit log.
func BenchmarkAuthenticate(b *testing.B) {
	f := &fakeTokens{valid: map[[sha256.Size]byte]known{
		sha256.Sum256([]byte(goodToken)): {Principal{Subject: "tok_1", Tenants: []tenant.ID{"acme"}, Scopes: Read}, time.Now().Add(time.Hour)},
	}}
	admin := NewStatic("tsk_the-admin-token-of-this-test", Principal{Subject: "admin-token", AllTenants: true})
	rec := audit.NewRecorder(nil, slog.New(slog.NewTextHandler(io.Discard, nil)))
	a := NewAudited(First{admin, newCache(f, time.Now)}, rec)
	ctx := WithPeer(context.Background(), Peer{Addr: "192.0.2.9", Client: "curl/8", RequestID: "r-1"})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Authenticate(ctx, goodToken); err != nil {
			b.Fatal(err)
		}
	}
}
