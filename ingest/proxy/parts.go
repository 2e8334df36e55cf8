package proxy

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/money"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/tokens"
)

// ErrNoProviderKey says that the tenant has no live key for the provider; the
// client gets 502.
var ErrNoProviderKey = errors.New("proxy: the tenant has no key for this provider")

// ErrOverBudget says that a call would exceed a budget; the client gets 429.
var ErrOverBudget = errors.New("proxy: over budget")

// Rules know whom a call is for where the caller's word does not count, or not
// alone. Asked once per call by many goroutines; it answers from memory.
// *ingest.Edge is one.
type Rules interface {
	// Attribute puts the dimensions into a call's event that its entry will have,
	// given the Subject of the caller's token. An error means that nobody can tell
	// now (503).
	Attribute(ev *event.Event, credential string) error
}

// Call is what is known of a call before it goes upstream. It holds no text.
// It is the proxy's and lives until the call ends: keep copies, not the pointer.
type Call struct {
	Tenant tenant.ID
	// Credential is the Subject of the caller's token: what limits and defaults
	// are bound to.
	Credential string
	// Provider is a route's provider; Model is "" where the request names none.
	Provider, Model string
	// Operation is what the endpoint does: chat, embeddings, …
	Operation string
	// Attribution after the tenant's rules (Parts.Rules), "" is untagged. Rules see the
	// model that the request names, as a provider's own is known only after the call.
	Team, Service, Feature, Agent, EndCustomer, Environment string
	// PromptTokens is an estimate of the prompt, and MaxTokens what the request
	// allows the answer to have; 0 is unknown.
	PromptTokens, MaxTokens int64
	// At is when the call arrived.
	At time.Time
}

// ProviderKey is a tenant's credential at a provider, in plaintext: the proxy
// holds it while a request is written and no longer. It prints as stars.
type ProviderKey struct {
	// ID names the key in logs and audit rows.
	ID string
	// Secret is the key itself.
	Secret string
	// Base is where the tenant has its provider; "" is the provider's own. Whoever
	// set it has checked it, and Parts.Foreign judges what it resolves to.
	Base string
}

// String hides the key.
func (ProviderKey) String() string { return "***" }

// GoString hides the key from %#v.
func (ProviderKey) GoString() string { return "***" }

// LogValue hides the key from slog.
func (ProviderKey) LogValue() slog.Value { return slog.StringValue("***") }

// Keys has the tenants' provider keys. Its method is asked once per call by many
// goroutines and answers from memory but for the first call in a while.
type Keys interface {
	// ProviderKey is the newest live key. Errors: ErrNoProviderKey; any other
	// means that nobody can tell now (503).
	ProviderKey(ctx context.Context, id tenant.ID, provider string) (ProviderKey, error)
}

// Switch is the kill switch. Asked once per call by many goroutines; it answers
// from memory.
type Switch interface {
	// Killed reports that calls like this are stopped, by which policy and why
	// (both go to the client and the ledger, at most 256 bytes each: 451). An
	// error means that nobody can tell now (503).
	Killed(ctx context.Context, c *Call) (policy, reason string, killed bool, err error)
}

// Limits are rates per credential. Asked once per call by many goroutines; it
// answers from memory.
type Limits interface {
	// Take counts the call. A positive wait refuses it: the client gets 429 and is
	// told to come again after it. policy names the limit. An error means that
	// nobody can tell now (503).
	Take(ctx context.Context, c *Call) (wait time.Duration, policy string, err error)
}

// Budgets keep calls within budgets that are reserved from before a call and
// settled after it.
type Budgets interface {
	// Reserve sets the estimate aside. It returns ErrOverBudget (429), or another
	// error when nobody can tell now (503). estimate is at most what the call may
	// cost, 0 when its model has no price.
	Reserve(ctx context.Context, c *Call, estimate money.Pico) (Reservation, error)
}

// Reservation is what was set aside for one call.
type Reservation interface {
	// Settle replaces the estimate with what the call used, once; known is false where
	// it could not be priced. It does not wait for a store.
	Settle(tokens int64, cost money.Pico, known bool)
	// Remaining is what the tightest budget of the call has left after it; ok is
	// false when there is no budget.
	Remaining() (left money.Pico, ok bool)
}

// Capture says whose prompts may leave a keyed digest. Asked once per call by many
// goroutines; it answers from memory. Whether the answer is yes or no, no text is kept.
type Capture interface {
	// Digests reports whether prompts of the tenant are to be digested.
	Digests(id tenant.ID) bool
}

// Pricer prices a call with the book in force. It must not wait.
type Pricer interface {
	// Price is what the tokens cost in a region ("" is unknown) and service tier ("" is
	// standard); ok is false where the book has no price.
	Price(provider, model, region, tier string, at time.Time, used *tokens.Vector) (cost money.Pico, ok bool)
}

// Sink takes the events of calls. *ingest.Edge over a spool is one.
type Sink interface {
	// Submit returns when the events are kept: the end of a response waits for it.
	Submit(ctx context.Context, who authn.Principal, events []event.Event) (ingest.Outcome, error)
}

// Metered is told of each answered call before its response ends, so that whoever hears
// of the call from its client, which is later, can know that it has its event. Called by
// many goroutines; it must not wait.
type Metered interface {
	// Note gives the call's event and the provider's ids of it in a header and in the
	// body; either may be "". The event is the proxy's again when it returns.
	Note(ev *event.Event, header, body string)
}

// Room says whether the spool can take the events of the calls that would begin
// now. Asked once per call; it must not wait.
type Room interface {
	Full() bool
}
