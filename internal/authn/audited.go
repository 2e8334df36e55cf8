package authn

import (
	"context"
	"errors"

	"github.com/tallystick/tallystick/internal/audit"
)

// First asks one authenticator after the other: the first that knows the token
// answers. That nobody could tell wins over that it is unknown.
type First []Authenticator

// Authenticate implements Authenticator.
func (f First) Authenticate(ctx context.Context, token string) (Principal, error) {
	worst := ErrUnauthenticated
	for _, a := range f {
		p, err := a.Authenticate(ctx, token)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, ErrUnauthenticated) {
			worst = err
		}
	}
	return Principal{}, worst
}

// Recorder keeps who was let in and who was refused; *audit.Recorder does.
type Recorder interface {
	Allowed(ev audit.Event)
	Denied(ctx context.Context, ev audit.Event)
}

// Audited is an Authenticator whose answers are audited. The contexts of its
// callers carry a Peer.
type Audited struct {
	inner Authenticator
	rec   Recorder
}

// NewAudited wraps an authenticator.
func NewAudited(inner Authenticator, rec Recorder) *Audited { return &Audited{inner, rec} }

// Authenticate implements Authenticator. A refusal is in the audit log, or
// counted for it, before the caller learns of it. What the caller presented is
// never kept, not even a part: only who came from where.
func (a *Audited) Authenticate(ctx context.Context, token string) (Principal, error) {
	p, err := a.inner.Authenticate(ctx, token)
	peer := PeerOf(ctx)
	ev := audit.Event{Action: audit.Authenticate, Addr: peer.Addr, Client: peer.Client, RequestID: peer.RequestID}
	switch {
	case err == nil:
		ev.Tenant, ev.Actor = p.Chain(), p.Subject
		a.rec.Allowed(ev)
	case errors.Is(err, ErrUnauthenticated):
		ev.Reason = "no valid credential"
		if token == "" {
			ev.Reason = "no credential"
		}
		a.rec.Denied(ctx, ev)
	}
	return p, err
}
