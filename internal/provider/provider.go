// Package provider is what a tenant lets the metering proxy do with its
// providers: with which keys, to which addresses, how fast, for how much money,
// what is stopped, and what may be kept of a call.
//
// A Store keeps that in Postgres, each change with its audit row in the same
// transaction. A Gate decides by it, call by call, without a round trip: it
// keeps what a tenant has set for at most CacheLife, so that a key that was
// revoked and a switch that was thrown are noticed everywhere within five
// seconds, and goes on for StaleLife with what it knew while Postgres is away.
//
// It promises that a provider key is stored and kept in memory sealed only, and
// is opened for the one call that needs it; that where a key may go was judged
// (package egress); that a rule that changes is audited; and that the calls of
// one process never spend more under a cap than the cap and what their
// estimates were wrong by. It never logs a key or puts one into an error.
//
// Of several proxies: each has rate limits of its own, so a tenant that uses two
// has twice the rate; each knows what the others have spent as of a few seconds
// ago, so caps can be overrun by what the others spend in that time. What a
// process that is killed has settled in its last second is not in its sum (the
// ledger has it). A cap counts from when it is first set, and counts only calls
// that have a price.
package provider

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/egress"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/secrets"
	"github.com/tallystick/tallystick/internal/sigv4"
	"github.com/tallystick/tallystick/internal/tenant"
)

// secretKind is the kind of secret that a provider key is.
const secretKind = "provider_key"

var providerName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

// Key is what is told of a provider key: its value only masked.
type Key struct {
	secrets.Secret
	Provider string
	BaseURL  string // "" is where the proxy knows the provider to be
}

// NewKey is what a provider key is made from.
type NewKey struct {
	Tenant   tenant.ID
	Provider string // as the proxy's routes name it
	Name     string // "" is the provider's
	// BaseURL is what stands before the provider's own paths; "" is where the proxy
	// knows the provider to be.
	BaseURL string
	// Value is one line of printable ASCII, or an AWS credential in any form that
	// package sigv4 reads.
	Value string
}

// Store keeps provider keys and the rules for calls. Its methods may be called
// from many goroutines. A change is given up when its audit row cannot be
// written; errors then match audit.ErrUnwritten.
type Store struct {
	db      *postgres.DB
	keys    audit.Keys
	secrets *secrets.Store
	opts    Options
}

// Options of a Store.
type Options struct {
	// Private allows base URLs in private networks and on this machine, and http.
	Private bool
	// Changed is told whose keys or rules were changed here; nil is nobody.
	Changed func(id tenant.ID)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// NewStore makes a store over a login of postgres.RoleApp and the store of
// secrets on it.
func NewStore(db *postgres.DB, keys audit.Keys, kept *secrets.Store, opts Options) *Store {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Changed == nil {
		opts.Changed = func(tenant.ID) {}
	}
	return &Store{db: db, keys: keys, secrets: kept, opts: opts}
}

func (s *Store) clock() time.Time { return s.opts.Now().UTC().Truncate(time.Microsecond) }

// checkValue gives a key's value as it is stored, or says what is wrong with it,
// without it: what cannot stand in a header would be found out call by call. An AWS
// credential is stored as its Text, however it was given.
func checkValue(value string) (string, error) {
	if sigv4.Is(value) {
		c, err := sigv4.Parse(value)
		if err != nil {
			return "", wrong("value", "syntax", "%v", err)
		}
		return c.Text(), nil
	}
	if strings.IndexFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
		return "", wrong("value", "syntax", "a provider key is one line of printable ASCII")
	}
	return value, nil
}

// AddKey keeps a new provider key. Errors: ErrInvalid, egress.ErrURL,
// secrets.ErrInvalid, secrets.ErrExists, keyring.ErrDestroyed.
func (s *Store) AddKey(ctx context.Context, by authn.Principal, n NewKey) (Key, error) {
	if !providerName.MatchString(n.Provider) {
		return Key{}, wrong("provider", "pattern", "a provider is named with 1 to 63 letters, digits, - and _, in lower case")
	}
	if n.Name == "" {
		n.Name = n.Provider
	}
	at := "the proxy's address"
	if n.BaseURL != "" {
		base, err := egress.CheckURL(n.BaseURL, s.opts.Private)
		if err != nil {
			return Key{}, err
		}
		n.BaseURL, at = base.String(), base.String()
	}
	value, err := checkValue(n.Value)
	if err != nil {
		return Key{}, err
	}
	m, err := s.secrets.Add(ctx, by, secrets.New{Tenant: n.Tenant, Kind: secretKind, Name: n.Name, Value: value,
		Beside: func(ctx context.Context, tx postgres.Tx, secretID string) error {
			_, err := tx.Exec(ctx, `insert into access.provider_key (tenant_id, secret_id, provider, base_url) values ($1, $2, $3, $4)`,
				string(n.Tenant), secretID, n.Provider, n.BaseURL)
			if err != nil {
				return fmt.Errorf("keep a provider key: %w", err)
			}
			return s.append(ctx, tx, by, n.Tenant, "provider_key.create", "secret/"+secretID, n.Provider+" at "+at)
		}})
	if err != nil {
		return Key{}, err
	}
	s.opts.Changed(n.Tenant)
	return Key{Secret: m, Provider: n.Provider, BaseURL: n.BaseURL}, nil
}

// Keys returns up to limit provider keys of a tenant in order of id, those after
// `after`, revoked ones too. Values are masked.
func (s *Store) Keys(ctx context.Context, id tenant.ID, after string, limit int) ([]Key, error) {
	var ids []string
	of := map[string]Key{}
	err := s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, `select secret_id, provider, base_url from access.provider_key
			where tenant_id = $1 and secret_id > $2 order by secret_id limit $3`, string(id), after, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var secretID string
			var k Key
			if err := rows.Scan(&secretID, &k.Provider, &k.BaseURL); err != nil {
				return err
			}
			ids, of[secretID] = append(ids, secretID), k
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list provider keys: %w", err)
	}
	if len(ids) == 0 {
		return nil, nil
	}
	list, err := s.secrets.Of(ctx, id, ids)
	if err != nil {
		return nil, err
	}
	keys := make([]Key, len(list))
	for i, m := range list {
		keys[i] = of[m.ID]
		keys[i].Secret = m
	}
	return keys, nil
}

// key is one provider key. Errors: ErrNotFound.
func (s *Store) key(ctx context.Context, id tenant.ID, secretID string) (k Key, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		return tx.QueryRow(ctx, `select provider, base_url from access.provider_key where tenant_id = $1 and secret_id = $2`,
			string(id), secretID).Scan(&k.Provider, &k.BaseURL)
	})
	if postgres.IsNoRows(err) {
		return Key{}, ErrNotFound
	}
	if err != nil {
		return Key{}, fmt.Errorf("find a provider key: %w", err)
	}
	return k, nil
}

// RotateKey gives a provider key a new value. New calls use it at once, within
// CacheLife in other processes; the old one is live for secrets.Overlap, for
// calls that have begun. Errors: ErrNotFound, ErrInvalid, secrets.ErrInvalid,
// keyring.ErrDestroyed.
func (s *Store) RotateKey(ctx context.Context, by authn.Principal, id tenant.ID, secretID, value string) (Key, error) {
	k, err := s.key(ctx, id, secretID)
	if err != nil {
		return Key{}, err
	}
	if value, err = checkValue(value); err != nil {
		return Key{}, err
	}
	if k.Secret, err = s.secrets.Rotate(ctx, by, id, secretID, value); err != nil {
		return Key{}, notFound(err)
	}
	s.opts.Changed(id)
	return k, nil
}

// RevokeKey ends a provider key for ever and takes its values out; a Gate
// anywhere refuses it within CacheLife. Errors: ErrNotFound.
func (s *Store) RevokeKey(ctx context.Context, by authn.Principal, id tenant.ID, secretID string) error {
	if _, err := s.key(ctx, id, secretID); err != nil {
		return err
	}
	if err := s.secrets.Revoke(ctx, by, id, secretID); err != nil {
		return notFound(err)
	}
	s.opts.Changed(id)
	return nil
}

func notFound(err error) error {
	if errors.Is(err, secrets.ErrNotFound) {
		return ErrNotFound
	}
	return err
}

// append writes an audit row about keys and rules.
func (s *Store) append(ctx context.Context, tx postgres.Tx, by authn.Principal, id tenant.ID, action, resource, reason string) error {
	p := authn.PeerOf(ctx)
	return audit.Append(ctx, tx, s.keys, audit.Event{
		Tenant: id, Actor: by.Subject, Action: action, Resource: resource, Outcome: audit.OK, Reason: reason,
		Addr: p.Addr, Client: p.Client, RequestID: p.RequestID,
	})
}
